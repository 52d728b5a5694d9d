"""What changes in a run's folder when the run continues: new settings, and the files after the checkpoint it returns
to.
"""

import filecmp
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain, count
from pathlib import Path
from typing import Any

from ...proto.atomic_files import json_lines, whole, write_text
from ...proto.settings import PromptSettings
from .changes import Change
from .line_files import LineFiles
from .wandb_log import FILE as WANDB
from .wandb_log import last_step

RESULTS = ("export", "summary.json", "before_after.png", "reward_curve.png")


def write_changes(
    folder: LineFiles, changes: Sequence[Change], done: int, went_back_from: int | None
) -> Sequence[Change]:
    """Add `changes`, and the return to the checkpoint `done`, to changes.jsonl; set aside what they contradict.

    Changes of later iterations are left out after a return: their settings, which the recipe still has, count from the
    next iteration on. Returns all changes that do.
    """
    if changes and any(line["iteration"] > done for line in folder.lines("metrics")):
        set_aside_after(folder, done)  # what is done again will differ
    for change in changes:
        if change.setting in ("prompts.train", "prompts.held_out"):
            _keep_prompts(folder.path, change.setting.removeprefix("prompts."), done)
    about, before = from_now(done), folder.lines("changes")
    undone = [] if went_back_from is None else [line for line in before if line["iteration"] > done + 1]
    changes = _together(undone, changes)
    returned = [] if went_back_from is None else [{**about, "went_back_from": went_back_from, "to": done}]
    lines = [*returned, *({**about, **asdict(change)} for change in changes)]
    if undone:
        write_text(folder.path / "changes.jsonl", json_lines([*(one for one in before if one not in undone), *lines]))
    elif lines:
        folder.append("changes", *lines)
    return changes


def _together(undone: Sequence[Mapping[str, Any]], changes: Sequence[Change]) -> list[Change]:
    """The changes from before those of the lines `undone` to after `changes`."""
    every = [*(Change(line["setting"], line.get("before"), line.get("now")) for line in undone if "setting" in line)]
    first: dict[str, Change] = {}
    last: dict[str, Change] = {}
    for change in [*every, *changes]:
        first.setdefault(change.setting, change)
        last[change.setting] = change
    both = [Change(setting, first[setting].before, last[setting].now) for setting in last]
    return [change for change in both if change.before != change.now]


def from_now(done: int) -> dict[str, Any]:
    """How a line of changes.jsonl begins: what it tells of takes effect after the iteration `done`."""
    return {"iteration": done + 1, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def set_aside_after(folder: LineFiles, iteration: int) -> None:
    """Move checkpoints, lines and results of later iterations into a folder of `set-aside`, where nobody looks."""
    aside = _free_name(folder.path / "set-aside" / f"after-{iteration:06d}")
    for name, still in (("metrics", iteration), ("evaluations", iteration), ("changes", iteration + 1)):
        if later := [line for line in folder.lines(name) if line["iteration"] > still]:
            write_text(aside / f"{name}.jsonl", json_lines(later))
    for pattern in ("checkpoints/iteration-*", "evaluations/iteration-*", "samples/iteration-*", "trees/*-*"):
        for path in sorted(folder.path.glob(pattern), reverse=True):
            number = path.stem.removeprefix("iteration-").partition("-")[0]
            if number.isdecimal() and int(number) > iteration:
                _move(path, aside / path.relative_to(folder.path))
    ahead = [WANDB] if last_step(folder.path) > iteration else []
    for name in (*RESULTS, *ahead):
        if (folder.path / name).exists():
            _move(folder.path / name, aside / name)
    folder.forget_after(iteration or -1)


def set_aside_wandb(folder: LineFiles, iteration: int) -> None:
    """Make way for a new W&B run, to which another evaluation of an iteration can be written, if the present one has
    that iteration already."""
    if last_step(folder.path) >= iteration:
        aside = _free_name(folder.path / "set-aside" / f"after-{iteration:06d}")
        _move(folder.path / WANDB, aside / WANDB)


def _keep_prompts(run: Path, name: str, done: int) -> None:
    """Copy the prompts that were used up to an iteration, before others replace them: until then a run that is killed
    needs them where they are."""
    for path in (run / "prompts").glob(f"{name}.*"):
        kept = path.with_name(f"{name}-until-{done:06d}{path.suffix}")
        if not (kept.exists() and filecmp.cmp(path, kept, shallow=False)):
            with whole(_free_name(kept)) as temporary:
                shutil.copyfile(path, temporary)


def drop_replaced_prompts(run: Path, prompts: PromptSettings) -> None:
    """Remove prompts from a run's folder that its recipe no longer names; `write_changes` has kept a copy."""
    for name in ("train", "held_out"):
        for path in (run / "prompts").glob(f"{name}.*"):
            if path.resolve() != getattr(prompts, name):
                path.unlink()


def _free_name(path: Path) -> Path:
    """`path`, or the first of `path`-2, -3 and so on that isn't there."""
    names = chain([path], (path.with_stem(f"{path.stem}-{number}") for number in count(2)))
    return next(name for name in names if not name.exists())


def _move(path: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    path.rename(to)
