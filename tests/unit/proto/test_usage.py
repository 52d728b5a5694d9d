"""What a lap of work has cost, against the operating system's own account."""

import resource
import time
from threading import Thread

import numpy as np
import pytest
import torch
from branchgrpo.proto.usage import CPU_SECONDS, GPU_SECONDS, NOTHING, Stopwatch, Usage, on_gpu


def spent() -> float:
    """CPU seconds of this process, as the operating system tells them."""
    told = resource.getrusage(resource.RUSAGE_SELF)
    return told.ru_utime + told.ru_stime


def work() -> None:
    for _ in range(20):
        np.linalg.svd(np.ones((60, 60)))


def test_a_lap_counts_all_threads_and_no_pause() -> None:
    begun = spent()
    watch = Stopwatch("a test")
    at_least = spent()
    threads = [Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    at_least = spent() - at_least
    used = watch.lap()
    assert at_least - 1e-4 <= used.cpu_seconds <= spent() - begun + 1e-4
    time.sleep(0.05)
    watch.start()
    pause = watch.lap()
    assert pause.seconds < 0.05
    (counted, *_) = (
        sample.value
        for family in CPU_SECONDS.collect()
        for sample in family.samples
        if sample.labels == {"phase": "a test"}
    )
    assert counted == pytest.approx(used.cpu_seconds + pause.cpu_seconds)


def test_without_a_gpu_its_seconds_are_absent() -> None:
    watch = Stopwatch("another test")
    with on_gpu(torch.device("cpu")):
        work()
    assert watch.lap().gpu_seconds is None
    assert not [sample for family in GPU_SECONDS.collect() for sample in family.samples]


def test_shares_add_up_to_the_whole() -> None:
    for whole in (Usage(4.0, 3.0, 2.0), Usage(4.0, 3.0)):
        assert sum((whole.share(part) for part in (0.25, 0.75)), NOTHING) == whole
    assert Usage(1.0, 1.0, 1.0) + Usage(1.0, 1.0) == Usage(2.0, 2.0, 1.0)
