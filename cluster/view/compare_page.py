"""The page that compares runs: their curves in the same charts, and the differences of their recipes."""

from collections.abc import Sequence

from markupsafe import Markup

from ...proto.errors import InputError
from .charts import Chart
from .figures import NO_REWARDS, Line, alike, column, courses, thinned
from .pages import Asked, render
from .recipe_page import flat
from .runs import Run

POINTS = 500
"""Points of a curve at most."""
RUN_SETTINGS = ("name", "runs", "resume")
"""Settings in which runs always differ."""
FIGURES = {"diversity": "Diversity", "seconds": "Seconds per iteration", "gradient_norm": "Gradient norm"}


def compare(runs: Sequence[Run], asked: Asked) -> Markup:
    """Curves of several runs over iterations, seconds or forward passes, as `over` asks for."""
    over = asked.get("over", "iterations")
    if over not in (known := list(courses([]))):
        raise InputError(f"over is '{over[:40]}'; there is {', '.join(known)}")
    metrics = {run: run.iterations("metrics") for run in runs}
    evaluations = {run: alike(run.iterations("evaluations")) for run in runs}
    names = list(dict.fromkeys(name for run in runs for name in _rewards(evaluations[run], metrics[run])))
    charts = []
    for name in names:
        for kind, lines, keys in (
            ("held-out prompts", evaluations, (name,)),
            ("sampled leaves", metrics, ("rewards", name, "mean")),
        ):
            own = f"{kind}-{name}".replace(" ", "-")
            chart = Chart(f"{name}, {kind}", f"Mean of {kind}.", [], x_title=over, name=own)
            for index, run in enumerate(runs):
                _add(chart, run, lines[run], metrics[run], keys, over, index, kind == "held-out prompts")
            charts.append(chart)
    for key, title in FIGURES.items():
        chart = Chart(title, "", [], x_title=over, below=0.0)
        for index, run in enumerate(runs):
            _add(chart, run, metrics[run], metrics[run], (key,), over, index, False)
        charts.append(chart)
    problems = {f"{run.name}/{file}": why for run in runs for file, why in run.problems.items()}
    return render(
        "compare.html",
        runs=runs,
        over=over,
        known=known,
        charts=[chart for chart in charts if chart.traces],
        differences=differences(runs),
        problems=problems,
    )


def _rewards(evaluations: Sequence[Line], metrics: Sequence[Line]) -> list[str]:
    held_out = [name for line in evaluations[-1:] for name in line if name not in NO_REWARDS]
    sampled = metrics[-1].get("rewards") if metrics else None
    return list(dict.fromkeys([*(sampled if isinstance(sampled, dict) else ()), *held_out]))


def _add(
    chart: Chart,
    run: Run,
    lines: Sequence[Line],
    metrics: Sequence[Line],
    keys: Sequence[str],
    over: str,
    index: int,
    dots: bool,
) -> None:
    """Add a run's curve to a chart, if it has one."""
    course = courses(metrics)
    at = {0: 0.0, **dict(zip((line["iteration"] for line in metrics), course[over], strict=True))}
    points = [
        (at[line["iteration"]], value)
        for line, value in zip(lines, column(lines, *keys), strict=True)
        if line["iteration"] in at and value is not None
    ]
    if points:
        x, y = zip(*thinned(points, POINTS), strict=True)
        chart.line(run.name, y, index, x=x, dots=dots)


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs, each with its text in every one."""
    recipes = [flat(run.recipe) for run in runs]
    names = dict.fromkeys(name for recipe in recipes for name in recipe if name not in RUN_SETTINGS)
    rows = [(name, [recipe.get(name, "–") for recipe in recipes]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]
