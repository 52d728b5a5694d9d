"""Measures the seconds per iteration of a study's variants, in turns within one process."""

import gc
import json
import time
from collections.abc import Sequence

import torch

from ...proto.atomic_files import write_text
from ...proto.settings import RunSettings
from ..run.in_process import InProcessLoop
from ..run.prompt_order import training_and_held_out
from .file import Study
from .timing import FILE, measured, timed_together, timing_name
from .trials import counted_iterations

MIN_LEARNING_RATE = 1e-30


def measure(study: Study, todo: Sequence[RunSettings]) -> None:
    """Measure the missing rounds: in each, one iteration of every variant, one after the other.

    Every loop first makes an iteration that isn't counted. The iterations are spread over the run, so that what changes
    on the way (windows, pruning) counts as it does there. The weights stay those that training starts from.
    """
    loops = [(settings, InProcessLoop(_still(settings), training_and_held_out(settings)[0])) for settings in todo]
    rounds = study.file.timing_rounds
    for number in range(-1, rounds):
        for settings, loop in loops:
            if number >= 0 and len(measured(study, settings)) > number:
                continue
            torch.set_num_threads(settings.threads or 1)
            iterations = counted_iterations(settings, study.file.budget) or settings.iterations
            iteration = 1 + max(number, 0) * iterations // rounds
            gc.collect()
            start = time.perf_counter()
            report = loop.iterate(iteration)
            seconds = time.perf_counter() - start
            if number >= 0:
                line = {
                    "settings": timing_name(settings),
                    "together": sorted(timed_together(study)),
                    "variant": settings.name,
                    "round": number,
                    "iteration": iteration,
                    "seconds": seconds,
                    "phase_seconds": report.seconds,
                }
                file = study.folder / FILE
                write_text(file, (file.read_text() if file.exists() else "") + json.dumps(line) + "\n")


def _still(settings: RunSettings) -> RunSettings:
    """The settings with a learning rate that changes nothing: one that is tried in tuning might end in NaN."""
    optimizer = settings.learner.optimizer.model_copy(update={"learning_rate": MIN_LEARNING_RATE})
    return settings.model_copy(update={"learner": settings.learner.model_copy(update={"optimizer": optimizer})})
