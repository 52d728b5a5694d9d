"""The folder of a run. Every file is complete at any moment, also after the process was killed.

recipe.yaml            all settings, as the run used them
prompts/               copies of its prompt files, and of the pictures in them
versions.json          of Python and the packages that matter
fingerprints.json      a digest of the policy, which is the same in any folder
changes.jsonl          one line per setting that was changed when the run continued, and per return to a checkpoint
set-aside/             files that a return or a change has made obsolete
driver.lock            locked by the driver, of which there is one
state.json             what the run is doing, or how it has ended
log.txt                messages of the run, with times
metrics.jsonl          one line per iteration
evaluations.jsonl      one line per evaluation
evaluations/           the pictures of each
samples/               leaves of some trees, with their prompts and scores, and a grid of them
trees/                 recorded trees, 000005-0000.safetensors of iteration 5 and tree 0, and so on
tensorboard/           event files
wandb/                 what W&B's package writes here
wandb.json             the id of the run at W&B, and the last step that was written there
trace/                 what each process did when
checkpoints/           iteration-000010/ and so on; damaged-iteration-000010/ is never loaded
export/                the trained model in diffusers' format
summary.json, before_after.png, reward_curve.png
"""

import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from ...proto.atomic_files import remove, sweep
from ...proto.errors import InputError
from ...proto.recipe import load_recipe, save_recipe
from ...proto.settings import CheckpointSettings, RunSettings
from . import evaluation_storage
from .change_log import drop_replaced_prompts, set_aside_after, write_changes
from .changes import Change, find_changes
from .checkpoints import DAMAGED_PREFIX, DamagedCheckpoint, check, numbered, set_aside
from .driver_lock import driver_lock
from .evaluation import MADE_WITH, Evaluation, comparable, evaluation_file, weights_of_best
from .line_files import LineFiles
from .new_folder import begin, check_place, kept_fingerprint, must_be_free, policy_fingerprint
from .state import resume_command

WhichCheckpoint = int | Literal["newest", "best"]
"""A checkpoint by its iteration, the newest one, or the one that was evaluated best."""


class RunFolder(LineFiles):
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.changes: list[Change] = []
        """Found when the run was taken up, and not yet in effect."""
        self._recipe: RunSettings | None = None
        """The recipe with these changes."""
        self._back_to: int | None = None
        self.went_back_from: int | None = None
        """The newest checkpoint, if the run goes back from it."""
        self._changes_written = False

    @classmethod
    @contextmanager
    def create(cls, settings: RunSettings) -> Iterator["RunFolder"]:
        """A new folder, locked within the block; if that raises, the folder is gone again unless the run has started.

        One that a driver left when it was killed before it had begun counts as none. Raises InputError if there is one
        or if it can't be made.
        """
        path = settings.runs / settings.name
        missing = [parent for parent in path.parents if not os.path.lexists(parent)]
        must_be_free(path)
        check_place(settings)
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        with driver_lock(path):
            must_be_free(path)  # another driver may have begun meanwhile
            try:
                begin(path, settings)
                yield folder
            except BaseException:
                if not folder.started:
                    shutil.rmtree(path, ignore_errors=True)  # NFS keeps the lock's file until it is closed
                    with suppress(OSError):  # another run may have begun in one of them
                        for parent in missing:
                            parent.rmdir()
                raise

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing folder. Raises InputError if it isn't one."""
        if not (path / "recipe.yaml").is_file():
            raise InputError(f"{path} is no run folder (it has no recipe.yaml)")
        return cls(path)

    @classmethod
    @contextmanager
    def resume(cls, settings: RunSettings, back_to: int | None = None) -> Iterator["RunFolder"]:
        """The folder of a run to continue, locked within the block, from the checkpoint `back_to`, or the newest.

        What is changed takes effect with `go_on`. Raises InputError if the folder isn't there or is in use, for a
        change that contradicts its checkpoints, and for a checkpoint that isn't there.
        """
        path = settings.runs / settings.name
        if not path.exists():
            raise InputError(f"run folder {path} doesn't exist; there is nothing to resume")
        folder = cls.open(path)
        with driver_lock(path):
            folder._take_up(settings, back_to)
            yield folder

    def _take_up(self, settings: RunSettings, back_to: int | None) -> None:
        """Find out what is changed. Raises InputError for what can't be."""
        policy = kept_fingerprint(self.path)
        self.changes = find_changes(self.settings, settings, policy, policy and policy_fingerprint(settings))
        if back_to:
            self.find_checkpoint(back_to, None, lambda path, why: None)
        done = self.done if back_to is None else back_to
        if done > settings.iterations:
            raise InputError(
                f"iterations is {settings.iterations}; the run in {self.path} has done {done} already (--iteration "
                "goes back to an earlier checkpoint)"
            )
        self._recipe, self._back_to = settings, back_to
        self.went_back_from = self.done if back_to is not None else None
        sweep(self.path)

    def go_on(self, damaged: Callable[[Path, str], None]) -> int:
        """Iteration of the checkpoint to continue from, 0 for the start, when processes are set up.

        The first time, later checkpoints are set aside if the run goes back, and changes are written down; each time
        lines of iterations that are to be done again are dropped. `damaged` is called as by `newest_whole_checkpoint`.
        """
        if self._back_to is not None:
            set_aside_after(self, self._back_to)
        done = self.newest_whole_checkpoint(damaged)
        if self._recipe is not None:
            if not self._changes_written:
                self.changes = [*write_changes(self, self.changes, done, self.went_back_from)]
            self._changes_written = True  # also if the disk is full now, and all this is tried again
            save_recipe(self._recipe, self.path)
            drop_replaced_prompts(self.path, self.settings.prompts)
            self._recipe = self._back_to = None
        self.forget_after(done or -1)
        return done

    @property
    def settings(self) -> RunSettings:
        """The settings in its recipe.yaml."""
        return load_recipe(self.path / "recipe.yaml")

    @property
    def command(self) -> str:
        """The command that continues the run."""
        return resume_command(self.path)

    @property
    def started(self) -> bool:
        """Whether the run has left anything worth keeping."""
        return (self.path / "evaluations.jsonl").exists() or (self.path / "metrics.jsonl").exists()

    # Checkpoints ------------------------------------------------------------------------------------------------

    def checkpoint(self, iteration: int) -> Path:
        """The folder of an iteration's checkpoint, whether it is there or not."""
        return self.path / "checkpoints" / f"iteration-{iteration:06d}"

    def checkpoints(self) -> list[int]:
        """Iterations that have a whole checkpoint, ascending."""
        return numbered(self.path)

    @property
    def done(self) -> int:
        """Iteration of the newest checkpoint; 0 if there is none."""
        return max(self.checkpoints(), default=0)

    @property
    def begins(self) -> bool:
        """Whether the run begins with its first iteration: it has no checkpoint, or `go_on` will set all aside."""
        return not self.done or self._back_to == 0

    def best_checkpoints(self) -> list[int]:
        """Iterations of the checkpoints that were evaluated, the best first.

        By the held-out mean of the reward that `checkpoint.keep_best` names, else of the weighted sum of rewards; of
        equal ones the earlier is better. Evaluations that can't be compared with the newest don't count.
        """
        return self._ranked(comparable(self.lines("evaluations")))

    def _ranked(self, evaluations: Sequence[Mapping[str, Any]]) -> list[int]:
        weights = weights_of_best(self.settings)
        scores = {
            line["iteration"]: sum(weight * line[name] for name, weight in weights.items())
            for line in evaluations
            if all(isinstance(line.get(name), int | float) for name in weights)
        }
        evaluated = [number for number in self.checkpoints() if math.isfinite(scores.get(number, math.nan))]
        return sorted(evaluated, key=lambda number: -scores[number])

    def find_checkpoint(
        self, which: WhichCheckpoint, names: Collection[str] | None, damaged: Callable[[Path, str], None]
    ) -> int:
        """Iteration of a checkpoint whose files (those of `names`, or all) are as they were written.

        If the newest one is wanted and damaged, `damaged` is called with it and what is wrong, and the one before is
        taken. Raises InputError if there is no such checkpoint.
        """
        found = self.checkpoints()
        if not found:
            raise InputError(f"{self.path} holds no checkpoint yet")
        if which == "newest":
            for iteration in reversed(found):
                try:
                    check(self.checkpoint(iteration), names)
                except DamagedCheckpoint as error:
                    damaged(self.checkpoint(iteration), str(error))
                else:
                    return iteration
            raise InputError(f"no checkpoint of {self.path} is whole")
        if which == "best":
            if not (best := self.best_checkpoints()):
                raise InputError(
                    f"no checkpoint of {self.path} was evaluated, so none is the best; train with "
                    "checkpoint.keep_best, or name an iteration"
                )
            which = best[0]
        if which not in found:
            there = ", ".join(map(str, found))
            raise InputError(f"{self.path} has no checkpoint of iteration {which}; there are {there}")
        try:
            check(self.checkpoint(which), names)
        except DamagedCheckpoint as error:
            raise InputError(f"checkpoint {self.checkpoint(which)} is damaged ({error}); take another") from error
        return which

    def newest_whole_checkpoint(self, damaged: Callable[[Path, str], None]) -> int:
        """Iteration of the newest checkpoint that is as it was written; 0 if none was ever made.

        Damaged ones are set aside, and `damaged` is called with their new path and the defect. Raises InputError if
        none is complete.
        """
        if not self.checkpoints():
            return 0
        try:
            return self.find_checkpoint("newest", None, lambda path, why: damaged(set_aside(path), why))
        except InputError as error:
            raise InputError(
                f"{error}; the remains are in checkpoints/{DAMAGED_PREFIX}*. Remove the run folder to start again"
            ) from error

    def drop_old_checkpoints(self, settings: CheckpointSettings) -> None:
        """Remove the checkpoints that are none of the newest, the best, or those that are kept for good.

        Where a run was evaluated in several ways that can't be compared, the best by each are kept.
        """
        found = self.checkpoints()
        kept = {*found[-settings.keep :]}
        evaluations = self.lines("evaluations") if settings.keep_best else []
        while settings.keep_best and evaluations:
            alike = comparable(evaluations)
            kept |= {*self._ranked(alike)[: settings.keep_best.count]}
            evaluations = [line for line in evaluations if line not in alike]
        for iteration in found:
            if iteration not in kept and not (settings.keep_every and iteration % settings.keep_every == 0):
                remove(self.checkpoint(iteration))

    # Evaluations ------------------------------------------------------------------------------------------------

    def add_evaluation(self, iteration: int, evaluation: Evaluation, made_with: Mapping[str, str]) -> None:
        """Keep the pictures and scores of an evaluation, and add its means to evaluations.jsonl.

        With what it was `made_with` it can be told from others, also of the same iteration.
        """
        line = {"iteration": iteration, **evaluation.means, MADE_WITH: dict(made_with)}
        evaluation_storage.write(self.path / evaluation_file(line), evaluation)
        self.append("evaluations", line)

    def evaluation(self, line: Mapping[str, Any], prompts: int | None = None) -> Evaluation:
        """The evaluation that a line of evaluations.jsonl tells of.

        With `prompts`, one picture for each of so many first prompts; the others aren't read.
        """
        return evaluation_storage.read(self.path / evaluation_file(line), prompts)


def load_settings(target: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """The settings of a recipe, or of the run in a folder, with overrides. Raises InputError as `load_recipe` does."""
    if target.name != str(target) and target.suffix != ".yaml" and not target.exists():
        raise InputError(f"{target} doesn't exist; name a recipe or the folder of a run")
    if not target.is_dir():
        return load_recipe(target, overrides)
    settings = load_recipe(RunFolder.open(target).path / "recipe.yaml", overrides)
    if given := [override for override in overrides if override.partition("=")[0] in ("name", "runs")]:
        raise InputError(f"'{given[0]}' names another run than the one in {target}; leave it out")
    target = target if target.name not in ("", "..") else target.resolve()
    return settings.model_copy(update={"runs": target.parent, "name": target.name})
