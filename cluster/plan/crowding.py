"""How much slower a processor's cores are while all of them work: they share memory and caches."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from statistics import median

import torch

from ...proto.errors import InputError
from ...proto.settings import RunSettings
from .measuring import Clock, calls_of, learning_policy
from .shapes import pictures_per_prompt

MAX_PROCESSES = 8
"""Processes, each of which loads the policy. More cores than these are taken to slow each other down as these do."""
PASSES = 7


def measure_slowdown(settings: RunSettings, threads: int, clock: Clock = time.perf_counter) -> tuple[int, float]:
    """The number of processes with so many threads that this machine has cores for; and how many times as long passes
    of the recipe's rollout and learner take while all of them work."""
    places = (os.cpu_count() or 1) // threads
    if places < 2:
        return max(places, 1), 1.0
    calls = calls_of(learning_policy(settings), pictures_per_prompt(settings.prompts))
    forward, trained = settings.rollout.max_batch_rows, settings.learner.rows_per_micro_batch

    def passes() -> float:
        """Seconds of a pass of either kind, medians."""
        spent: list[list[float]] = []
        for _ in range(PASSES):
            begin = clock()
            calls.forward(forward)
            between = clock()
            calls.train(trained)
            spent.append([between - begin, clock() - between])
        return sum(map(median, zip(*spent, strict=True)))

    passes()  # memory is found, and kernels are chosen
    alone = passes()
    with _others(settings, threads, min(places, MAX_PROCESSES) - 1):
        return places, max(1.0, passes() / alone)


@contextmanager
def _others(settings: RunSettings, threads: int, count: int) -> Iterator[None]:
    """Processes that do the same meanwhile. Raises InputError if one can't, as without memory."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads of torch can hang
    stop, ready = context.Event(), [context.Event() for _ in range(count)]
    processes = [context.Process(target=_work, args=(settings, threads, own, stop), daemon=True) for own in ready]
    for process in processes:
        process.start()
    try:
        for process, own in zip(processes, ready, strict=True):
            while not own.wait(0.1):
                if not process.is_alive():
                    raise InputError(f"a process with the policy, beside {count}, ended with code {process.exitcode}")
        yield
    finally:
        stop.set()
        for process in processes:
            process.join()


def _work(settings: RunSettings, threads: int, ready: Event, stop: Event) -> None:
    """Make passes until told to `stop`; `ready` after the first."""
    torch.set_num_threads(threads)
    calls = calls_of(learning_policy(settings), pictures_per_prompt(settings.prompts))
    while not stop.is_set():
        calls.forward(settings.rollout.max_batch_rows)
        calls.train(settings.learner.rows_per_micro_batch)
        ready.set()
