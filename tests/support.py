"""What tests of whole runs share: commands, waiting, and the weights that come out."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from branchgrpo.benchmarks.support.local_cluster import end, free_port, reachable, started
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.proto.recipe import dump_recipe
from branchgrpo.proto.settings import RunSettings

Settings = Callable[..., RunSettings]
"""The type of the fixtures `run_settings` and `settings_in`."""
Weights = dict[str, torch.Tensor]
SMALL = {"cpus": 0.5, "threads": 1}
"""A pool whose processes leave room for others on a small Ray cluster."""


def command(*arguments: str | Path) -> list[str]:
    """The command line `branchgrpo ARGUMENTS`, by this Python."""
    return [sys.executable, "-m", "branchgrpo", *map(str, arguments)]


def recipe_in(folder: Path, settings: RunSettings) -> Path:
    """The recipe of a run, written into a folder under the run's name."""
    path = folder / f"{settings.name}.yaml"
    path.write_text(dump_recipe(settings))
    return path


@contextmanager
def ray_head(
    *options: str, cpus: int = 4, store_bytes: int = 200_000_000, port: int | None = None, **environment: str
) -> Iterator[str]:
    """Address of a Ray cluster of one node, which ends with the block."""
    port = port or free_port()
    size = (f"--num-cpus={cpus}", f"--object-store-memory={store_bytes}", "--include-dashboard=false")
    at = ("--head", "--node-ip-address=127.0.0.1", f"--port={port}")
    process = started(*at, *size, *options, environment=os.environ | environment)
    try:
        assert reachable(port)
        yield f"127.0.0.1:{port}"
    finally:
        end(process)


def until(reached: Callable[[], object], seconds: float = 300, told: Callable[[], str] = lambda: "") -> None:
    """Wait until `reached()` is true. Fails with what is `told()` after so many seconds."""
    limit = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < limit, told()[-3000:]
        time.sleep(0.05)


def weights(run: Path, iteration: int | None = None, file: str = "weights") -> Weights:
    """Weights in a run's checkpoint: the newest one, unless an iteration is given."""
    folder = RunFolder(run)
    checkpoint = folder.newest_checkpoint() if iteration is None else folder.checkpoint(iteration)
    return safetensors.torch.load_file(checkpoint / f"{file}.safetensors")


def assert_bit_equal(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
