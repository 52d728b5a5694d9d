"""The results of a run, from what its folder holds: reward curve, pictures before and after, summary."""

import json
import logging

from ...proto.atomic_files import write_text
from ...proto.errors import InputError
from ...proto.settings import RunSettings
from . import pictures
from .evaluation import MADE_WITH, comparable, evaluation_file
from .evaluation_storage import read_prompts
from .folder import RunFolder
from .stop import Stopped

BEFORE_AFTER, PROMPTS_SHOWN = "before_after.png", 24
"""The picture of two evaluations, and the number of their prompts that it shows."""


def draw_before_after(folder: RunFolder, settings: RunSettings) -> bool:
    """Draw held-out pictures of the newest evaluation beside those of the first that can be compared with it. Returns
    whether there are two; if not, an earlier picture is removed. One that can't be read is warned of.
    """
    if len(alike := comparable(folder.lines("evaluations"))) < 2:
        (folder.path / BEFORE_AFTER).unlink(missing_ok=True)
        return False
    ends = {"before": alike[0], "after": alike[-1]}
    try:
        evaluations = [folder.evaluation(line, PROMPTS_SHOWN) for line in ends.values()]
    except InputError as error:  # somebody made room, say: the run needs no picture
        logging.getLogger(__name__).warning("%s isn't drawn: %s", BEFORE_AFTER, error)
        return False
    weights = {name: abs(reward.weight) for name, reward in settings.rewards.items()}
    shown = max(evaluations[-1].rewards, key=lambda name: weights.get(name, 0.0))
    titles = [f"{name}, iteration {line['iteration']}: mean {shown} {line[shown]:.2f}" for name, line in ends.items()]
    pictures.before_after(folder.path / BEFORE_AFTER, list(zip(titles, evaluations, strict=True)), shown)
    return True


def write_results(folder: RunFolder, settings: RunSettings, error: BaseException | None = None) -> None:
    """Write reward curve, before and after, and summary, from what the folder holds.

    `error` is what has ended a run before its time.
    """
    pictures.reward_curve(folder.path / "reward_curve.png", folder.lines("metrics"), folder.lines("evaluations"))
    draw_before_after(folder, settings)
    write_text(folder.path / "summary.json", json.dumps(summary(folder, error), indent=2) + "\n")


def summary(folder: RunFolder, error: BaseException | None = None) -> dict[str, object]:
    """The result of a run: how it ended, rewards before and after, iterations, seconds."""
    metrics, evaluations = folder.lines("metrics"), comparable(folder.lines("evaluations"))
    phases = {phase for line in metrics for phase in line["phase_seconds"]}
    first, last = (evaluations[0], evaluations[-1]) if evaluations else ({}, {})
    means = [name for name in last if name not in ("iteration", MADE_WITH)]
    return {
        "name": folder.settings.name,
        "ended": "finished" if error is None else "stopped" if isinstance(error, Stopped) else "failed",
        "error": None if error is None or isinstance(error, Stopped) else str(error) or type(error).__name__,
        "iterations": metrics[-1]["iteration"] if metrics else 0,
        "evaluation_prompts": len(set(read_prompts(folder.path / evaluation_file(last)))) if evaluations else 0,
        "before": {name: first[name] for name in means} if evaluations else None,
        "before_iteration": first.get("iteration"),
        "after": {name: last[name] for name in means} if len(evaluations) > 1 else None,
        "after_iteration": last["iteration"] if len(evaluations) > 1 else None,
        "training_seconds": sum(line["seconds"] for line in metrics),
        "phase_seconds": {
            phase: sum(line["phase_seconds"].get(phase, 0.0) for line in metrics) for phase in sorted(phases)
        },
        "forward_passes": sum(line["forward_passes"] for line in metrics),
        "rows": sum(line["rows"] for line in metrics),
        "skipped_edges": sum(line["skipped_edges"] for line in metrics),
    }
