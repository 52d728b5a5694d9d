"""The page of all runs: a line each, to sort, to filter, and to choose some for comparison."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import yaml
from markupsafe import Markup

from ...proto.atomic_files import parse_json_lines
from ..run.status import RunStatus
from .figures import alike, column, main_reward, number, thinned
from .pages import render
from .runs import Run, Runs

SPARK_POINTS = 60
SPARK_SIZE = (96, 22)
"""Width and height of a small curve, in pixels."""
MAX_SUMMARIES = 5000


@dataclass(frozen=True)
class Summary:
    """A line of the table."""

    name: str
    status: RunStatus
    method: str
    reward: str | None
    """The reward that `before` and `now` are means of, over the held-out prompts."""
    before: float | None
    now: float | None
    curve: Sequence[float]
    """Means of this reward by evaluation; with fewer than three, those of the sampled leaves by iteration."""
    problems: dict[str, str]

    @property
    def spark(self) -> str:
        """The points of the small curve."""
        low, high = min(self.curve, default=0.0), max(self.curve, default=0.0)
        width, height = SPARK_SIZE
        across = width / max(len(self.curve) - 1, 1)
        up = (height - 4) / (high - low or 1.0)
        return " ".join(f"{i * across:.1f},{height - 2 - (value - low) * up:.1f}" for i, value in enumerate(self.curve))


class Summaries:
    """The summaries of runs, made again when a run changes."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, Summary]] = OrderedDict()

    def of(self, run: Run) -> Summary:
        """The summary of a run as it is now."""
        stamp, kept = run.stamp(), self._kept.get(run.name)
        if kept is None or kept[0] != stamp:
            kept = self._kept[run.name] = (stamp, summary(run))
            if len(self._kept) > MAX_SUMMARIES:
                self._kept.popitem(last=False)
        return kept[1]


def summary(run: Run) -> Summary:
    """A run in one line. Of its metrics only some lines are read, for there may be hundreds of runs."""
    recipe = run.read("recipe.yaml", _quick) or {}
    if run.file("recipe.yaml") is None:
        run.problems["recipe.yaml"] = "is missing"
    rewards, schedule = recipe.get("rewards"), recipe.get("schedule")
    weighted = {
        str(name): number(own.get("weight", 1.0)) or 0.0
        for name, own in (rewards.items() if isinstance(rewards, dict) else ())
        if isinstance(own, dict)
    }
    evaluations = alike(run.iterations("evaluations"))
    reward = main_reward(weighted, evaluations)
    held_out = [value for value in column(evaluations, reward or "") if value is not None]
    curve = held_out
    if len(held_out) < 3 and reward:
        lines = run.read("metrics.jsonl", _some_lines) or []
        curve = [value for value in column(lines, "rewards", reward, "mean") if value is not None]
    before, now = (held_out[0], held_out[-1]) if held_out else (None, None)
    method = schedule.get("method", "") if isinstance(schedule, dict) else ""
    return Summary(run.name, run.status, str(method), reward, before, now, thinned(curve, SPARK_POINTS), run.problems)


def runs_page(runs: Runs, summaries: Summaries) -> Markup:
    """The table of all runs, the newest first."""
    rows = sorted((summaries.of(run) for run in runs.all()), key=lambda row: -(row.status.since or 0.0))
    return render("runs.html", rows=rows, root=str(runs.root), spark=SPARK_SIZE)


def stamp(runs: Runs) -> str:
    """A text that changes when the table does."""
    return sha256(repr([(run.name, run.stamp()) for run in runs.all()]).encode()).hexdigest()[:16]


def _quick(data: bytes) -> dict[str, Any]:
    """Settings of a recipe, read ten times faster than `read_yaml` does, which tells more texts from numbers."""
    content = yaml.load(data, yaml.CSafeLoader)
    if not isinstance(content, dict):
        raise ValueError("it holds no settings")
    return content


def _some_lines(data: bytes) -> list[dict[str, Any]]:
    """Lines of a file of JSON lines at equal distances, as many as a small curve has points."""
    lines = data.splitlines()
    step = max(1, len(lines) // SPARK_POINTS)
    return parse_json_lines(b"\n".join(lines[::step]))[0]
