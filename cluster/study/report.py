"""The report of a study, from its run folders alone: report.md, report.html, tables as CSV, figures as PNG."""

import base64
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import matplotlib
import numpy as np
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from ...proto.atomic_files import whole, write_text
from . import tables
from .curves import AXES, BROKEN_STATES, Curve, read_curve
from .file import Study
from .statistics import CONFIDENCE, mean
from .tables import Curves, Table
from .timing import timing_name
from .trials import chosen, trials, tuning_trials

matplotlib.use("Agg")
FOLDER = "report"
GRID = 100
"""Places along a figure's axis at which the mean over seeds is drawn."""
BAND_SEEDS = 3
"""Seeds that a band needs: Student's interval from two is wider than the picture."""
STYLE = """body{font:16px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}img{max-width:100%}
table{border-collapse:collapse;display:block;overflow-x:auto}td,th{border:1px solid #ccc;padding:.2em .6em}"""


@dataclass(frozen=True)
class Report:
    """A report that was written."""

    path: Path
    """Path of the Markdown file."""
    broken: Sequence[Path]
    """Folders of the runs that have ended before their time, of tuning too where nothing could be chosen."""


def write_report(study: Study) -> Report:
    """Write the report of what there is so far. The same runs give the same report."""
    folder = study.folder / FOLDER
    every = [read_curve(study, trial) for trial in trials(study)]
    curves: Curves = {
        variant: [c for c in every if c.trial.variant == variant and len(c.reward)] for variant in study.variants
    }
    found: list[Table] = [tables.points(curves)]
    text = "\n\n".join(_blocks(study, every, curves, found)) + "\n"
    for table in found:
        write_text(folder / f"{table.name}.csv", _csv(table))
    write_text(folder / "report.md", text)
    write_text(folder / "report.html", _html(study.name, text, folder))
    untuned = [variant for variant in study.variants if not chosen(study, variant)]
    tuned = [run for variant in untuned for _, runs in tuning_trials(study, variant) for run in runs]
    broken = [run.folder.path for run in tuned if run.state in BROKEN_STATES]
    broken += [curve.trial.folder.path for curve in every if curve.state in BROKEN_STATES]
    return Report(folder / "report.md", broken)


def _blocks(study: Study, every: Sequence[Curve], curves: Curves, found: list[Table]) -> Iterator[str]:
    """The report's paragraphs. Tables are added to `found`, and figures drawn."""

    def shown(table: Table) -> str:
        found.append(table)
        return _markdown(table)

    file = study.file
    budget = next(f"{number:,g} {name.replace('_', ' ')}" for name, number in file.budget if number is not None)
    seeds = ", ".join(map(str, file.seeds))
    yield f"# Study: {study.name}"
    yield (
        f"Held-out reward `{file.reward}` of {len(file.variants)} variants with seeds {seeds}, {budget} each. Figures "
        f"are means over seeds with {CONFIDENCE:.0%} intervals (Student's); ratios to `{file.baseline}` have bootstrap "
        "intervals."
    )
    yield _of_seconds(study)
    yield from _unfinished(study, every)
    for target, table in tables.targets(study, curves):
        yield f"## To {file.reward} {target:g}"
        yield (
            "Effort before the first evaluation at or above it. `>`: some runs never got there, and count with all "
            f"they spent. Times fewer: that of `{file.baseline}` over the variant's; above 1 the variant is better."
        )
        yield shown(table)
    for axis, title in AXES.items():
        if any(axis in c.effort for own in curves.values() for c in own):
            yield f"## At equal {title}"
            picture = f"reward_by_{axis}.png"
            _draw(study.folder / FOLDER / picture, study, curves, axis)
            yield f"![{file.reward} against {title}]({picture})"
            if equal := tables.equal_effort(curves, axis):
                yield shown(equal)
    yield "## Cost of an iteration"
    yield "Seconds: mean without the fastest and the slowest fifth (fastest to slowest), then by phase."
    yield shown(tables.costs(study, curves))
    yield "## Diversity"
    yield "How much the pictures of one prompt differ: leaves of a tree, and held-out pictures if there are several."
    yield shown(tables.diversity(curves))
    if (tuning := tables.tuning(study)).rows:
        yield "## Tuning"
        yield (
            "Chosen by the mean validation reward over all evaluations after the first. Validation prompts and seeds "
            "are others than those of the report."
        )
        yield shown(tuning)


def _of_seconds(study: Study) -> str:
    executions = {candidate.settings.execution for own in study.variants.values() for candidate in own}
    if executions == {"ray"}:
        return "Seconds are iterations times the typical seconds per iteration of these runs."
    rounds = study.file.timing_rounds
    return (
        "Seconds are iterations times seconds per iteration. Those were measured apart from the runs, within one "
        f"process, in which the variants took turns for {rounds} rounds, starting from the untrained weights. "
        f"{_alike(study)}Evaluations and checkpoints don't count."
    )


def _alike(study: Study) -> str:
    """Which variants share a measurement."""
    alike: dict[str, dict[str, None]] = {}
    for variant, candidates in study.variants.items():
        for candidate in candidates:
            if candidate.settings.execution == "in_process":
                alike.setdefault(timing_name(candidate.settings), {})[variant] = None
    shared = [" and ".join(f"`{name}`" for name in names) for names in alike.values() if len(names) > 1]
    return "".join(f"{names} do the same work, and share a measurement. " for names in shared)


def _unfinished(study: Study, every: Sequence[Curve]) -> Iterator[str]:
    """What is missing from the report."""
    lines = []
    for curve in every:
        if curve.state in BROKEN_STATES or not curve.trial.finished:
            why = f": {curve.error.splitlines()[0]}" if curve.error else ""
            reached = f" after iteration {curve.effort['iterations'][-1]:.0f}" if len(curve.reward) else ""
            state = "broken, " * (curve.state in BROKEN_STATES) + curve.state
            lines.append(f"- `{curve.name}` is {state}{reached}{why}")
    for variant in study.variants:
        if not chosen(study, variant):
            runs = [run for _, own in tuning_trials(study, variant) for run in own]
            failed = all(run.ended for run in runs)
            lines.append(f"- `{variant}` " + ("can't be tuned: all its values failed" if failed else "isn't tuned yet"))
            lines += [
                f"- `tuning/{run.settings.name}` is broken, {run.state}" for run in runs if run.state in BROKEN_STATES
            ]
    if any("seconds" not in curve.effort for curve in every if len(curve.reward)):
        lines.append("- seconds per iteration aren't measured yet")
    if lines:
        yield "## Missing"
        yield "\n".join(lines)


def _draw(path: Path, study: Study, curves: Curves, axis: str) -> None:
    """Mean reward against effort with a 95 % band, as far as at least three seeds have got, and each seed as a thin
    line."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    plot = figure.subplots()
    for index, (variant, own) in enumerate(curves.items()):
        own = [c for c in own if axis in c.effort]
        if not own:
            continue
        efforts = np.linspace(0, max(c.effort[axis][-1] for c in own), GRID)
        rewards = np.array([c.at(axis, efforts) for c in own])
        found = [mean(column[~np.isnan(column)]) for column in rewards.T]
        colour = f"C{index}"
        plot.plot(efforts, [e.value for e in found], color=colour, label=variant)
        low, high = (np.array([getattr(e, end) for e in found]) for end in ("low", "high"))
        many = (~np.isnan(rewards)).sum(axis=0) >= BAND_SEEDS
        plot.fill_between(efforts, low, high, where=many, color=colour, alpha=0.15, lw=0)
        for c in own:
            plot.plot(c.effort[axis], c.reward, color=colour, alpha=0.35, lw=0.6)
    for target in study.file.targets:
        plot.axhline(target, color="grey", lw=0.6, ls=":")
    values = np.concatenate([c.reward for own in curves.values() for c in own])
    least, most = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.05 * (most - least) or 0.05
    plot.set(xlabel=AXES[axis], ylabel=study.file.reward, ylim=(least - margin, most + margin))
    plot.set_xlim(left=0)
    plot.grid(alpha=0.3)
    figure.legend(fontsize=8, ncols=4, loc="outside upper center")  # the curves may lie anywhere
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _markdown(table: Table) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [table.head, ["---"] * len(table.head), *table.rows])


def _csv(table: Table) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for record in table.records for name in record))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.records)
    return text.getvalue()


def _html(title: str, text: str, folder: Path) -> str:
    """The Markdown as one page that holds its figures."""

    def inlined(source: re.Match[str]) -> str:
        picture = base64.b64encode((folder / source[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{picture}"'

    # Errors of runs, which are anybody's text, are in it: none of it is HTML.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r'src="([\w.]+\.png)"', inlined, body)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n"
