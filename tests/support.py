"""What tests of whole runs share: commands, waiting, and the weights that come out."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
import uvicorn
from branchgrpo.benchmarks.support.local_cluster import end, free_port, node_is_up, reachable, started
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.iteration_trace import IterationTrace, critical_path
from branchgrpo.cluster.run.prompt_order import places_of
from branchgrpo.cluster.run.trained import policy_with, trained_weights
from branchgrpo.proto.media import Media
from branchgrpo.proto.prompt import pictures_of
from branchgrpo.proto.recipe import dump_recipe
from branchgrpo.proto.scoring import ScoreRequest
from branchgrpo.proto.settings import RewardSettings, RunSettings
from branchgrpo.reward_service.scorers import Scorers
from branchgrpo.rollout_workers.policies.base import Policy
from published import PROMPTS

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
Settings = Callable[..., RunSettings]
"""The type of the fixtures `run_settings` and `settings_in`."""
Result = TypeVar("Result")
Weights = dict[str, torch.Tensor]
SMALL = {"cpus": 0.5, "threads": 1}
"""A pool whose processes leave room for others on a small Ray cluster."""
LITTLE = {"cpus": 0.1, "threads": 1}
ALONE = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
"""The environment of a user without a Ray cluster: Ray is started with its own defaults."""
COUNTING = {"counting": {"scorer": "branchgrpo.benchmarks.support.stand_ins:counting_scorer"}}
"""A reward whose scores differ in every batch."""
GLYPHS = {"policy.pretrained": "glyphs", "policy.height": 32, "policy.width": 64, "threads": 1}
"""The embedded policy, whose pictures hold text: advantages need rewards that differ."""


def command(*arguments: str | Path) -> list[str]:
    """The command line `branchgrpo ARGUMENTS`, by this Python."""
    return [sys.executable, "-m", "branchgrpo", *map(str, arguments)]


def done_by(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that has ended, in the environment `ALONE` and some more variables."""
    return subprocess.run(command(*arguments), env=ALONE | environment, capture_output=True, text=True)


def recipe_in(folder: Path, settings: RunSettings) -> Path:
    """The recipe of a run, written into a folder under the run's name."""
    path = folder / f"{settings.name}.yaml"
    path.write_text(dump_recipe(settings))
    return path


def train_command(settings: RunSettings, folder: Path, *arguments: str) -> list[str]:
    return command("train", recipe_in(folder, settings), *arguments)


def run_train(settings: RunSettings, folder: Path, *arguments: str) -> Path:
    """The folder of a run after `branchgrpo train`."""
    done = subprocess.run(train_command(settings, folder, *arguments), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return settings.runs / settings.name


def start_train(settings: RunSettings, folder: Path, file: Path) -> subprocess.Popen[str]:
    """`branchgrpo train`, once a file of the run exists."""
    process = subprocess.Popen(
        train_command(settings, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )

    def there() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return file.exists()

    until(there)
    return process


@contextmanager
def ray_head(
    *options: str, cpus: int = 4, store_bytes: int = 200_000_000, port: int | None = None, **environment: str
) -> Iterator[str]:
    """Address of a Ray cluster of one node, which ends with the block."""
    port = port or free_port()
    size = (f"--num-cpus={cpus}", f"--object-store-memory={store_bytes}", "--include-dashboard=false")
    at = ("--head", "--node-ip-address=127.0.0.1", f"--port={port}")
    for _ in range(3):
        process = started(*at, *size, *options, environment=os.environ | environment)
        if node_is_up(process):
            break
        end(process)
    try:
        assert reachable(port)
        yield f"127.0.0.1:{port}"
    finally:
        end(process)


def prompts_of(iteration: int, prompts: Sequence[str], per_iteration: int, seed: int) -> list[str]:
    """The prompts of an iteration of a run without focus."""
    return [prompts[place] for place in places_of(iteration, len(prompts), per_iteration, seed)]


def until(reached: Callable[[], object], seconds: float = 300, told: Callable[[], str] = lambda: "") -> None:
    """Wait until `reached()` is true. Fails with what is `told()` after so many seconds."""
    limit = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < limit, told()[-3000:]
        time.sleep(0.05)


def weights(run: Path, iteration: int | None = None, file: str = "weights") -> Weights:
    """Weights in a run's checkpoint: the newest one, unless an iteration is given."""
    folder = RunFolder(run)
    checkpoint = folder.checkpoint(folder.done if iteration is None else iteration)
    return safetensors.torch.load_file(checkpoint / f"{file}.safetensors")


def trained_policy(folder: RunFolder, *, ema: bool = False) -> Policy:
    """The policy of a run with the weights of its newest checkpoint, as commands load it."""
    _, weights = trained_weights(folder, ema=ema)
    return policy_with(folder.settings, weights)


def assert_bit_equal(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def follows(found: IterationTrace) -> bool:
    """Whether the critical path's pieces follow each other from the iteration's start to its end."""
    steps = critical_path(found)
    meet = all(abs(one.end - other.start) < 1e-9 for one, other in pairwise(steps))
    return meet and steps[0].start == found.start and steps[-1].end == found.end


def shade(media: npt.NDArray[np.uint8] | Media, prompts: Sequence[str]) -> npt.NDArray[np.float64]:
    """A reward that is the mean of a picture, or of a clip with its sound or without: `function: support:shade`."""
    pictures = media.pictures if isinstance(media, Media) else media
    return pictures.mean(axis=tuple(range(1, pictures.ndim)))


def loudness(media: Media, prompts: Sequence[str]) -> npt.NDArray[np.float64]:
    """A reward that is the mean power of a sound: `function: support:loudness`."""
    return (media.waveforms.astype(np.float64) ** 2).mean(axis=(1, 2))


def change(media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> list[float]:
    """A reward that is the distance of a result from the picture that it started from: `function: support:change`."""
    sources = [np.asarray(pictures_of(prompt)[0].fitted(*media.shape[1:3]), float) for prompt in prompts]
    return [float(np.abs(one - source).mean()) for one, source in zip(media, sources, strict=True)]


def scores(
    reward: str, settings: RewardSettings, media: npt.NDArray[np.uint8] | Media, prompts: Sequence[str] = PROMPTS
) -> npt.NDArray[np.float64]:
    """What a reward gives some media, by the models in this process or by another service."""
    given = media if isinstance(media, Media) else Media(media)
    return Scorers({reward: settings}).score(ScoreRequest(given, prompts, [reward])).scores[reward]


def at_once(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What coroutines return that run side by side."""

    async def all_of_them() -> list[Result]:
        return await asyncio.gather(*calls)

    return asyncio.run(all_of_them())


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Address of an ASGI application, served by a thread of this process until the block ends."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert reachable(port)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()


def warmth(latents: npt.NDArray[np.float32], prompts: Sequence[str]) -> npt.NDArray[np.float64]:
    """A reward that is the mean of a leaf's latents: `{function: support:warmth, reads: latents}`."""
    return latents.astype(np.float64).reshape(len(latents), -1).mean(axis=1)
