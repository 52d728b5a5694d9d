"""A run from recipe to exported model.

Training processes may die; this module restarts them. Whenever a process is lost, all processes of the run are
restarted from the newest checkpoint, with the code that resumes a run. The work since then is redone with the same
result, because every iteration is a pure function of the state before it.
"""

import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..proto.atomic_files import Result, check_free, is_full, when_there_is_room
from ..proto.errors import Diverged, ProcessLost
from ..proto.settings import RunSettings
from ..proto.tracing import span, start_tracing, stop_tracing
from ..proto.update_stats import reward_shares
from .plan.utilisation import PhaseFlops, count_kinds, note_device
from .run import pictures, samples, tree_record
from .run.advice import advice, outweighed
from .run.change_log import set_aside_wandb
from .run.checkpoints import size
from .run.console import RunDisplay
from .run.continuation import after_divergence, after_stop
from .run.evaluation import MADE_WITH, made_with, sampled_prompts
from .run.falls import find_fall, note_fall, undo_fall
from .run.folder import RunFolder
from .run.leaves import played
from .run.log import RunLog, iteration_line
from .run.loop import IterationReport, Loop
from .run.new_folder import has_begun, with_kept_pictures
from .run.oldest_files import drop_oldest
from .run.preflight import check_here
from .run.prompt_order import cut_warning, training_and_held_out
from .run.results import BEFORE_AFTER, draw_before_after, write_results
from .run.start_point import find_start, same_start, without_start
from .run.stop import Stopped, StopRequest
from .run.tree_picture import tree_picture
from .run_sizes import with_sizes

MAX_FRUITLESS_RESTARTS = 3
"""Times in a row that a run is set up again without having made a new checkpoint."""


def train(
    settings: RunSettings,
    display: RunDisplay,
    *,
    resume: bool = False,
    back_to: int | None = None,
    address: str | None = None,
) -> Path:
    """Run the recipe, or continue it (from the checkpoint `back_to`, or the newest), and return the run folder.

    With `execution: ray` on the cluster at `address`, or on one that is started for this run and ended with it. What
    can be checked is checked before anything is written. Raises InputError for settings that can't be used, Stopped
    after SIGTERM or Ctrl-C.
    """
    # A closed terminal is no reason to end: neither for the run, nor for the processes that it starts.
    with StopRequest("at once").listening(deaf=(signal.SIGHUP,)) as stop:
        check_here(settings)
        before = settings.runs / settings.name
        resume = resume or (settings.resume == "auto" and has_begun(before))
        settings, automatic = same_start(settings, before) if resume else find_start(settings), settings.automatic
        settings = with_sizes(settings, before if resume else None, address)
        train_prompts, held_out = training_and_held_out(settings)
        opened = RunFolder.resume(settings, back_to) if resume else RunFolder.create(settings)
        with opened as folder, display.recording(folder.path, settings):
            display.advise(advice(settings))
            display.tell_sizes(settings, automatic)
            train_prompts, held_out = (with_kept_pictures(own, folder.path) for own in (train_prompts, held_out))
            try:
                _go(folder, settings, display, stop, address, train_prompts, held_out)
            except BaseException as error:
                with stop.during("ignored"):
                    _salvage(folder, settings, display, error)
                raise
    return settings.runs / settings.name


def _go(
    folder: RunFolder,
    settings: RunSettings,
    display: RunDisplay,
    stop: StopRequest,
    address: str | None,
    prompts: Sequence[str],
    held_out: Sequence[str],
) -> None:
    """Run to the end, however often processes are lost on the way, unless it gets no further."""
    loop, reached, fruitless = None, folder.done, 0
    try:
        while True:
            try:
                with display.waiting("starting the loop and loading models"):
                    if loop is None:
                        loop = _loop(settings, folder, prompts, address)
                    else:
                        loop.restart()
                while not _Run(loop, folder, settings, display, stop, held_out).go(prompts, held_out):
                    with display.waiting("setting up processes with the best weights"):
                        loop.restart(lost=False)
                return
            except ProcessLost as error:
                reached, fruitless = folder.done, 1 if folder.done > reached else fruitless + 1
                if fruitless > MAX_FRUITLESS_RESTARTS:
                    raise
                display.tell_loss(error, reached)
                if stop.signum is not None:
                    raise Stopped(stop.signum, after_stop(folder)) from error
    except Diverged as error:
        raise Diverged(f"{error}; {after_divergence(error, folder, settings)}") from error
    except KeyboardInterrupt:
        if stop.signum is None:
            raise
        raise Stopped(stop.signum, after_stop(folder)) from None
    finally:
        with stop.during("ignored"), display.waiting("ending processes"):
            if loop is not None:
                loop.close()
            stop_tracing()


def _salvage(folder: RunFolder, settings: RunSettings, display: RunDisplay, error: BaseException) -> None:
    """Write what came of a run that has ended before its time."""
    if not folder.started:
        return
    try:
        write_results(folder, settings, error)
    except Exception as another:  # the first error is the one to tell
        logging.getLogger(__name__).warning("the results so far could not be written: %s", another, exc_info=True)


def _loop(settings: RunSettings, folder: RunFolder, prompts: Sequence[str], address: str | None) -> Loop:
    settings = settings if folder.begins else without_start(settings)
    if settings.execution == "in_process":
        from .run.in_process import InProcessLoop

        start_tracing(settings.trace_folder, "in_process", "in_process")
        loop = InProcessLoop(settings, prompts)
        note_device(loop.policy.device, settings.policy.precision)
        return loop
    from .on_ray.address import find_cluster

    address = find_cluster(address)  # before Ray is imported
    from .on_ray.driver import RayLoop

    return RayLoop(settings, folder.path, prompts, address)


class _Run:
    """The iterations of one run, with what stands around them."""

    def __init__(
        self,
        loop: Loop,
        folder: RunFolder,
        settings: RunSettings,
        display: RunDisplay,
        stop: StopRequest,
        held_out: Sequence[str],
    ) -> None:
        self.loop, self.folder, self.settings, self.display, self.stop = loop, folder, settings, display, stop
        self.done = self._write(lambda: folder.go_on(display.warn_damage))
        display.tell_changes(folder.changes, self.done + 1, folder.went_back_from)
        folder.changes, folder.went_back_from = [], None
        if self.done:
            display.tell_resumption(folder.checkpoint(self.done), self.done)
            with display.waiting("loading the checkpoint"):
                loop.load(folder.checkpoint(self.done))
        self._evaluates_again = bool(self.done) and not self._evaluated_alike(held_out)
        if self._evaluates_again:
            set_aside_wandb(folder, self.done)
        self.log = self._write(lambda: RunLog(folder, settings, self.done + 1))
        self._flops: PhaseFlops | None = None
        self._told = False  # that a reward outweighs another
        stop.asked = self._answer
        self._at, self._begun = self.done, time.perf_counter()

    def go(self, prompts: Sequence[str], held_out: Sequence[str]) -> bool:
        """Run to the end, or until a fall was undone: the loop must be restarted then. Returns whether it ended."""
        settings, folder, goes_on = self.settings, self.folder, False
        try:
            if self.done >= settings.iterations:
                self.display.tell_all_done(folder.path, self.done)
            if not self.done:
                if cut := self.loop.cut_prompts([*prompts, *held_out]):
                    self.display.advise([cut_warning(cut, settings.policy.max_sequence_length)])
                self._evaluate(0, held_out)
                self._write(lambda: self.log.complete(0))
            elif self._evaluates_again:
                self._evaluate(self.done, held_out)  # what later evaluations can be compared with
            with self.display.iterating(self.done, settings.iterations):
                for iteration in range(self.done + 1, settings.iterations + 1):
                    with self.stop.during("noted"):
                        if self._iterate(iteration, held_out):
                            goes_on = True
                            return False
            self._finish(held_out)
        except ProcessLost:
            goes_on = True
            raise
        finally:
            self.log.close(goes_on=goes_on)
        self.display.finished(folder)
        return True

    def _iterate(self, iteration: int, held_out: Sequence[str]) -> bool:
        """Make an iteration and what is due after it. Returns whether the reward fell, and the best weights are back in
        the newest checkpoint."""
        settings, fall = self.settings, None
        self._at, self._begun = iteration, time.perf_counter()
        with span("iteration", iteration=iteration):
            report = self.loop.iterate(iteration, self.display.within)
        seconds = time.perf_counter() - self._begun
        if settings.execution == "in_process":  # on Ray the controller has done it
            self._flops = self._flops or PhaseFlops(settings, count_kinds(settings))
            self._flops.complete(report)
        line = iteration_line(report, seconds)
        self._write(lambda: self.log.iteration(line))
        self.display.iteration(report, seconds)
        if not self._told and (lines := outweighed(settings, reward_shares(report.updates))):
            self.display.advise(lines)
            self._told = True
        self._draw(report)
        last = iteration == settings.iterations
        if settings.evaluation.every and iteration % settings.evaluation.every == 0 and not last:
            self._evaluate(iteration, held_out)
            fall = find_fall(self.folder, settings, self.display.warn_damage)
        if not last:  # that has an evaluation to come
            self._write(lambda: self.log.complete(iteration))
        if fall:
            pace = self._write(partial(undo_fall, self.folder, settings, fall))
            self._write(partial(note_fall, self.folder, fall, pace))
            self.display.tell_fall(fall, pace)
            self.folder.drop_old_checkpoints(settings.checkpoint)
        elif last or report.learner_draining or settings.checkpoint_due(iteration):
            self._save(iteration)
        if (signum := self.stop.signum) and not last:
            if self.folder.done < iteration:
                self._save(iteration)
            raise Stopped(signum, after_stop(self.folder))
        if report.learner_draining and not last:
            raise ProcessLost("the node of a learner rank is about to go; there is a checkpoint")
        return fall is not None

    def _draw(self, report: IterationReport) -> None:
        """Write the samples and the recorded trees of an iteration, where they are due, and log their pictures."""
        iteration, run, logging = report.iteration, self.folder.path, self.settings.logging
        if report.samples:
            grid = self._write(lambda: samples.write(run, iteration, report.samples))
            drop_oldest(samples.sampled(run), logging.samples_megabytes)
            first = played(report.samples[0].media[:1])
            self._show(
                iteration,
                lambda: {
                    "samples": pictures.logged(run / samples.samples_file(iteration, "png"), grid),
                    **{f"samples/{name}": data for name, data in first.items()},
                },
            )
        for record in report.trees:
            self._write(partial(tree_record.write, run, record))
        if report.trees:
            recorded = tree_record.recorded_trees(run).items()
            drop_oldest([(number, path) for (number, _), path in recorded], logging.trees_megabytes)
            self._show(iteration, lambda: {f"trees/{record.tree}": tree_picture(record) for record in report.trees})

    def _save(self, iteration: int) -> None:
        """Make a checkpoint, once there is room for one as large as the last."""
        path = self.folder.checkpoint(iteration)
        expected = size(self.folder.checkpoint(found[-1])) if (found := self.folder.checkpoints()) else 0

        def save() -> None:
            check_free(self.folder.path, expected)
            self.loop.save(path)

        self._write(save)
        self.folder.drop_old_checkpoints(self.settings.checkpoint)

    def _write(self, write: Callable[[], Result]) -> Result:
        """The result of `write`, as soon as the disk has room for it. Raises Stopped if a stop is requested
        meanwhile."""
        waits = False

        def wait(error: BaseException) -> None:
            nonlocal waits
            if not waits:
                self.display.warn_full_disk(error)
            waits = True

        try:
            written = when_there_is_room(
                write,
                self.settings.checkpoint.disk_timeout_seconds,
                wait,
                lambda: self.stop.signum is not None,
            )
        except OSError as error:
            if is_full(error) and self.stop.signum is not None:
                raise Stopped(self.stop.signum, f"the disk is full; {after_stop(self.folder)}") from error
            raise
        if waits:
            self.display.tell_room()
        return written

    def _answer(self) -> None:
        """Report how long a requested stop takes."""
        last = next(reversed(self.folder.lines("metrics")), None)
        left = last["seconds"] - (time.perf_counter() - self._begun) if last else 0
        self.display.stopping(self._at, left if left > 0 else None)

    def _evaluate(self, iteration: int, held_out: Sequence[str]) -> None:
        if held_out:
            with self.display.waiting(f"evaluating on {len(held_out)} held-out prompts"):
                evaluation = self.loop.evaluate(held_out)
            # First what may be told twice, should the disk be full.
            self._write(lambda: self.log.evaluation(iteration, evaluation.means))
            way = made_with(self.settings, evaluation.prompts)
            self._write(lambda: self.folder.add_evaluation(iteration, evaluation, way))
            if self._write(lambda: draw_before_after(self.folder, self.settings)):
                self._show(iteration, lambda: {"before_after": (self.folder.path / BEFORE_AFTER).read_bytes()})
            self.display.evaluation(iteration, evaluation.means)

    def _show(self, iteration: int, draw: Callable[[], Mapping[str, bytes]]) -> None:
        """Log pictures by name, drawn only if a log shows them."""
        if self.log.shows_pictures:
            drawn = draw()
            self._write(lambda: self.log.pictures(iteration, drawn))

    def _evaluated_alike(self, held_out: Sequence[str]) -> bool:
        """Whether the newest evaluation has the rewards of the present settings, made as they are made now."""
        newest: dict[str, Any] = next(reversed(self.folder.lines("evaluations")), {})
        way = made_with(self.settings, sampled_prompts(held_out, self.settings))
        return not held_out or way.items() <= newest.get(MADE_WITH, {}).items()

    def _finish(self, held_out: Sequence[str]) -> None:
        """The last evaluation, pictures, export and summary."""
        if not any(line["iteration"] == self.settings.iterations for line in self.folder.lines("evaluations")):
            self._evaluate(self.settings.iterations, held_out)
            self.folder.drop_old_checkpoints(self.settings.checkpoint)  # the last one may be the best now
        self._write(lambda: self.log.complete(self.settings.iterations))
        with self.display.waiting("exporting"):
            self._write(lambda: self.loop.export(self.folder.path / "export"))
            self._write(lambda: write_results(self.folder, self.settings))
