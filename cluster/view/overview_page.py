"""The section of a run's curves, of what is wrong with them, and of its checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from markupsafe import Markup

from ...proto.errors import InputError
from ..run.evaluation import MADE_WITH
from ..run.folder import RunFolder
from ..run.status import describe
from .alarms import alarms
from .charts import Chart
from .figures import NO_REWARDS, Line, alike, column, number, weights
from .pages import Asked, Links, render
from .runs import Run

EDGES = {"trained": "edges", "skipped": "skipped_edges", "pruned": "pruned_edges"}
"""Label of a layer -> its key in metrics.jsonl."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is there, with the means of its evaluation."""

    iteration: int
    means: Mapping[str, float | None]
    best: bool


def build(run: Run, asked: Asked, links: Links) -> Markup:
    """Rewards, diversity, seconds and the learner's figures over the iterations."""
    metrics, evaluations, weighted = run.iterations("metrics"), run.iterations("evaluations"), weights(run)
    comparable = alike(evaluations)
    names = list(dict.fromkeys([*weighted, *(name for line in comparable for name in line if name not in NO_REWARDS)]))
    first, last = (comparable[0], comparable[-1]) if comparable else ({}, {})
    marks = changes(run)
    return render(
        "overview.html",
        results=[(name, weighted.get(name, 0.0), number(first.get(name)), number(last.get(name))) for name in names],
        between=[line["iteration"] for line in (first, last) if line],
        alarms=alarms(metrics, comparable, weighted, clip_range(run), stale=bool(run.recipe.get("staleness"))),
        rewards=reward_charts(metrics, evaluations, names, weighted, marks) if metrics or evaluations else [],
        charts=charts(metrics, marks, objective(run)) if metrics else [],
        checkpoints=checkpoints(run, evaluations, names),
        names=names,
    )


def clip_range(run: Run) -> float | None:
    """The setting `learner.clip_range`, where it bounds ratios."""
    learner = run.recipe.get("learner")
    if not isinstance(learner, Mapping) or learner.get("trust_region", "clip") != "clip":
        return None
    return number(learner.get("clip_range"))


def objective(run: Run) -> object:
    """The setting `learner.objective`."""
    learner = run.recipe.get("learner")
    return learner.get("objective") if isinstance(learner, Mapping) else None


def reward_charts(
    metrics: Sequence[Line],
    evaluations: Sequence[Line],
    names: Sequence[str],
    weighted: Mapping[str, float],
    marks: Mapping[int, str],
) -> list[Chart]:
    """A chart for each reward: the sampled leaves with their band, and the held-out prompts."""
    made = []
    for index, name in enumerate(names):
        weight = weighted.get(name, 0.0)
        sampled = any(value is not None for value in column(metrics, "rewards", name, "mean"))
        leaves = "Of the sampled leaves: mean, and minimum to maximum. " if sampled or not metrics else ""
        watched = "It is only watched" if leaves else "It is scored in evaluations alone"
        role = f"It is trained on, with weight {weight:g}" if weight else watched
        about = f"{leaves}Of held-out prompts: mean. {role}."
        chart = Chart(name, about, column(metrics, "iteration"), marks=marks, name=f"reward-{name}")
        if sampled:
            low, high = (column(metrics, "rewards", name, end) for end in ("min", "max"))
            chart.band("leaves", low, high, index)
            chart.line("leaves", column(metrics, "rewards", name, "mean"), index)
        # Evaluations that were made in another way can't be compared, and are not connected.
        held_out = [line for line in evaluations if name in line]
        for part, (_, lines) in enumerate(groupby(held_out, key=lambda line: _way(line, name))):
            group = list(lines)
            label = "held-out" if part == 0 else f"held-out, part {part + 1}"
            chart.line(label, column(group, name), index + 1, x=column(group, "iteration"), dots=True)
        made.append(chart)
    return made


def _way(line: Line, name: str) -> object:
    made_with = line.get(MADE_WITH)
    return made_with.get(name) if isinstance(made_with, Mapping) else None


def charts(metrics: Sequence[Line], marks: Mapping[int, str], objective: object) -> list[Chart]:
    """The charts of everything but rewards, as far as an objective has it."""
    x = column(metrics, "iteration")

    def chart(title: str, about: str, below: float | None = None) -> Chart:
        return Chart(title, about, x, marks=marks, below=below)

    def single(title: str, about: str, key: str) -> Chart:
        made = chart(title, about, 0.0)
        made.line(title.lower(), column(metrics, key), 0)
        return made

    phases = list(dict.fromkeys(name for line in metrics for name in _keys(line.get("phase_seconds"))))
    seconds = chart("Seconds by phase", "Stacked. On Ray phases overlap, so together they may exceed the iteration.")
    for index, phase in enumerate(phases):
        seconds.layer(phase, column(metrics, "phase_seconds", phase), index)
    seconds.line("iteration", column(metrics, "seconds"), 7)
    spent = chart(
        "CPU seconds by phase",
        "Stacked, of all processes. Where fewer than the busy seconds times threads, processes waited for a core.",
    )
    busy = list(dict.fromkeys(name for line in metrics for name in _keys(line.get("cpu_seconds"))))
    for index, phase in enumerate(busy):
        spent.layer(phase, column(metrics, "cpu_seconds", phase), index)
    used = chart("Utilisation", "Floating-point operations as a share of the GPUs' peak, while they were at work.", 0.0)
    on_gpus = list(dict.fromkeys(name for line in metrics for name in _keys(line.get("utilisation"))))
    for index, phase in enumerate(on_gpus):
        used.line(phase, column(metrics, "utilisation", phase), index)
    shares = chart(
        "Shares of rewards", "Stacked. How much of the advantages is due to each reward (advantage.combine).", 0.0
    )
    rewards = list(dict.fromkeys(name for line in metrics for name in _keys(line.get("reward_shares"))))
    for index, reward in enumerate(rewards):
        shares.layer(reward, column(metrics, "reward_shares", reward), index)
    edges = chart("Edges", "Stacked. Skipped edges have no advantage; pruned ones were left out by a setting.", 0.0)
    for index, (label, key) in enumerate(EDGES.items()):
        edges.layer(label, column(metrics, key), index)
    edges.line("rows trained", column(metrics, "rows"), 3)
    ratio = chart("Ratio", "Smallest and largest probability ratio of an edge. Far from 1: steps are too large.")
    ratio.band("ratio", column(metrics, "ratio_min"), column(metrics, "ratio_max"), 0)
    ratio.line("minimum", column(metrics, "ratio_min"), 0)
    ratio.line("maximum", column(metrics, "ratio_max"), 1)
    ratios, clips = objective not in ("nft", "awm"), objective != "nft"
    clipped = single("Clip fraction", "Edges beyond the clip range, which give no gradient.", "clip_fraction")
    difference = single(
        "Log-probability difference",
        "Learner against sampler, before the first update. It must stay near zero.",
        "logprob_abs_diff",
    )
    norm = single("Gradient norm", "Before clipping, mean of the updates. 0: nothing was trained.", "gradient_norm")
    made = [
        (True, single("Diversity", "Of the leaves of a tree. If it falls, samples become alike.", "diversity")),
        (len(rewards) > 1, shares),
        (True, seconds),
        (busy, spent),
        (on_gpus, used),
        (True, edges),
        (clips, clipped),
        (ratios, ratio),
        (ratios, difference),
        (True, norm),
        (any(column(metrics, "kl")), single("KL", "To the policy before training, per edge.", "kl")),
    ]
    return [own for is_known, own in made if is_known]


def _keys(value: Any) -> list[str]:
    return [str(key) for key in value] if isinstance(value, Mapping) else []


def changes(run: Run) -> dict[int, str]:
    """Iteration -> what was changed there when the run continued."""
    found: dict[int, list[str]] = {}
    for line in run.iterations("changes"):
        found.setdefault(line["iteration"], []).append(describe(line))
    return {iteration: ", ".join(texts) for iteration, texts in found.items()}


def checkpoints(run: Run, evaluations: Sequence[Line], names: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints in the folder, the newest first."""
    if (recipe := run.file("recipe.yaml")) is None:
        return []
    folder = RunFolder(recipe.parent)
    try:
        best = folder.best_checkpoints()[:1]
    except (
        InputError,
        AttributeError,
        ValueError,
        LookupError,
        TypeError,
        OSError,
    ):  # a recipe or lines of another version
        best = []
    means = {line["iteration"]: line for line in evaluations}
    return [
        Checkpoint(number_, {name: number(means.get(number_, {}).get(name)) for name in names}, number_ in best)
        for number_ in reversed(folder.checkpoints())
    ]
