"""What `branchgrpo calibrate` measures: seconds of the network, the decoder and reward models on this device.

It takes any policy, from a recipe or made elsewhere.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ...proto.media import Media
from ...proto.prompt import Prompt
from ...proto.schedule import ode_schedule
from ...proto.settings import RolloutSettings, RunSettings
from ...proto.tree import Task
from ...reward_service.interface import Scorer
from ...reward_service.scorers import precision_on_gpu, scores_in_calls
from ...rollout_workers.policies.base import Policy, add_adapters
from ...rollout_workers.policies.load import load_policy
from ...rollout_workers.worker import RolloutWorker
from .calibration import DECODE, FORWARD, TRAINED, Pace
from .flops import Work
from .gpus import gpu_of_device
from .passes import Calls
from .shapes import needed_prompt

SECONDS = 10.0
"""Seconds after which a measurement takes no larger batches and repeats nothing more."""
REPEATS = 5
STEPS = 8
"""Denoising steps of the leaf that reward models are measured with."""
Clock = Callable[[], float]
"""Seconds, from any moment on: of the wall, or of this process' CPUs."""
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices whose product measures the peak of a device without a data sheet."""


@dataclass(frozen=True)
class Batches:
    """Maximum number of items in a call, by what is called."""

    forward: int
    trained: int
    decode: int
    score: Mapping[str, int]
    """By reward model. What a model takes of clips and sounds, frames or windows, are no more either in a call."""


@dataclass(frozen=True)
class Measured:
    """Seconds of a kind of work."""

    work: str
    seconds: Mapping[int, float]
    """Number of items in a call -> seconds of the call, medians."""
    pace: Pace
    bytes: Mapping[int, int] = field(default_factory=dict)
    """Number of items in a call -> the most that all tensors on the GPU took meanwhile; nothing on a CPU."""


def measure(
    policy: Policy,
    batches: Batches,
    work: Work | None,
    peak: float,
    scorers: Mapping[str, Scorer],
    clock: Clock = time.perf_counter,
    *,
    pictures: int = 0,
    prompt: Prompt | None = None,
) -> Iterator[Measured]:
    """Measure the rollout's rows, the learner's, decoding, and each of `scorers` (model -> scorer), one after another.

    The policy is as the learner prepares it: with adapters and checkpoints if it has them. Its prompts come
    with so many `pictures`. Scorers get a leaf that was drawn for `prompt`, which may be one of the run's. Without
    `work`, the FLOPs, only seconds are found. Batches for which there is no memory are left out; if a single row is
    one, what torch or the scorer raises for it is raised (`out_of_memory`).
    """
    prompt = prompt or needed_prompt(policy, "a prompt", pictures)
    leaf = _drawn(policy, prompt) if scorers else None
    flops = {} if work is None else {FORWARD: work.forward_row, TRAINED: work.trained_row, DECODE: work.decode_leaf}

    calls = calls_of(policy, pictures)
    for kind, call, largest in (
        (FORWARD, calls.forward, batches.forward),
        (TRAINED, calls.train, batches.trained),
        (DECODE, calls.decode, batches.decode),
    ):
        yield _measured(kind, call, largest, policy.device, flops.get(kind), peak, clock)
    for model, scorer in scorers.items():
        known = work.score_leaf.get(model) if work else None
        on_gpu = policy.device.type == "cuda"
        own_peak = device_peak(policy.device, precision_on_gpu(model))[0] if on_gpu else peak

        most = batches.score[model]

        def score(leaves: int, scorer: Scorer = scorer, most: int = most) -> None:
            assert leaf
            scores_in_calls(scorer, leaf[np.zeros(leaves, np.int64)], [prompt] * leaves, most)

        yield _measured(model, score, most, policy.device, known, own_peak, clock)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error tells that there is no memory left, on the device or on the host.

    On a CPU torch raises a RuntimeError for it, and scorers of the user's own tell it in an error of ours.
    """
    told = "out of memory", "can't allocate memory"
    return isinstance(error, MemoryError) or any(text in str(error) for text in told)


def _drawn(policy: Policy, prompt: Prompt) -> Media:
    """A leaf as the policy draws it, with its latents: reward models of code take longer where there is more to see."""
    task = Task(0, (0,), (prompt,), ode_schedule(STEPS), seed=0)
    part = next(RolloutWorker(policy, RolloutSettings()).sample(task))
    return part.media.with_latents(part.latents[-1][None].float().cpu().numpy())


def learning_policy(settings: RunSettings) -> Policy:
    """The recipe's policy as the learner has it."""
    policy, learner = load_policy(settings.policy), settings.learner
    if learner.lora:
        add_adapters(policy, learner.lora, settings.seed)
    if learner.gradient_checkpointing:
        policy.checkpoint_gradients()
    return policy


def calls_of(policy: Policy, pictures: int = 0) -> Calls:
    """The calls of a loaded policy, with a prompt of its own that comes with so many `pictures`; its text encoders are
    released."""
    encoded = policy.encode(needed_prompt(policy, "a prompt", pictures))
    conditioning = {name: value.to(policy.device) for name, value in encoded.items()}
    policy.release_encoders()
    return Calls(policy, conditioning, policy.device)


def _measured(
    kind: str,
    call: Callable[[int], object],
    largest: int,
    device: torch.device,
    flops: float | None,
    peak: float,
    clock: Clock,
) -> Measured:
    seconds: dict[int, float] = {}
    peaks: dict[int, int] = {}
    begin = clock()
    for rows in _growing(largest):
        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            call(rows)  # kernels are chosen, memory is found
            if device.type == "cuda":
                peaks[rows] = torch.cuda.max_memory_allocated(device)
            seconds[rows] = _median(partial(call, rows), device, clock)
        except Exception as error:
            if not (seconds and out_of_memory(error)):
                raise
            break
        if clock() - begin > SECONDS:
            break
    count = max(seconds)
    item = seconds[count] / count
    if count > 1:  # what a call takes by itself, and each item beside it
        item = min(item, (seconds[count] - seconds[1]) / (count - 1))
    item = item if item > 0 else seconds[count] / count
    utilisation = flops / (item * peak) if flops else None
    pace = Pace(utilisation, item, max(0.0, seconds[count] - count * item), seconds)
    return Measured(kind, seconds, pace, peaks)


def _growing(largest: int) -> Iterator[int]:
    count = 1
    while count < largest:
        yield count
        count *= 4
    yield largest


def _median(call: Callable[[], object], device: torch.device, clock: Clock) -> float:
    spent: list[float] = []
    while len(spent) < REPEATS and (len(spent) < 2 or sum(spent) < SECONDS / REPEATS):
        _wait(device)
        start = clock()
        call()
        _wait(device)
        spent.append(clock() - start)
    return median(spent)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The GPU as torch names it, or the processor's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU {names[0]}" if names else "CPU"


def device_peak(device: torch.device, precision: str, clock: Clock = time.perf_counter) -> tuple[float, str]:
    """The peak of a device in FLOP/s, and its source: a data sheet, or a product of matrices that is timed here."""
    if gpu := gpu_of_device(device_name(device)):
        return gpu.peak(precision), gpu.source
    side = MATRIX_SIDE[device.type]
    matrix = torch.ones(side, side, dtype=getattr(torch, precision), device=device)
    torch.mm(matrix, matrix)
    seconds = min(_median(lambda: torch.mm(matrix, matrix), device, clock) for _ in range(3))
    return 2 * side**3 / seconds, f"measured: a product of {side} x {side} matrices in {precision}"
