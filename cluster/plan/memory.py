"""The memory of a run's processes at their peaks, in bytes: weights, gradients, optimizer states and activations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from ...learner.deepspeed_setup import BUCKET
from ...proto.settings import PoolSettings, RunSettings
from .costs import given_pools
from .passes import Pass, Passes, measure, number_bytes

MASTER_AND_MOMENTS = 12
"""Bytes for each trained parameter: AdamW's two moments, and with bfloat16 the float32 weights, of which float32 has no
second copy."""
GATHERED_PARAMETERS = 1_000_000_000
"""Maximum number of parameters that a rank holds whole with ZeRO 3, by DeepSpeed's default."""
ROLLOUT, DECODE = "rollout.max_batch_rows", "rollout.decode_batch"
LEARNER, SCORE = "learner.rows_per_micro_batch", "pools.rewards.{}.batch_pictures"
"""Settings that say how many rows, leaves or pictures go through a network at once."""


@dataclass(frozen=True)
class Phase:
    """Something that a process does, and what that takes beside what the process always holds."""

    taken: Pass
    rows: int
    """Rows, leaves or pictures at once, as the recipe says."""

    @property
    def bytes(self) -> float:
        """Bytes at the peak."""
        return self.taken.bytes(self.rows)


@dataclass(frozen=True)
class Memory:
    """Bytes of one process; on its device where nothing else is said."""

    weights: float
    """Bytes of the weights: network, autoencoder, the KL term's second network, or a reward model."""
    gradients: float = 0
    optimizer: float = 0
    buffers: float = 0
    """DeepSpeed's, and states and conditionings of the trees that grow."""
    phases: Mapping[str, Phase] = field(default_factory=dict)
    """Setting with a number of rows -> what is done with so many. One phase follows the other."""
    encoders: float = 0
    """Bytes of text encoders, which are on the device while prompts are encoded, and otherwise in the host's memory."""
    host: float = 0
    """Bytes in the host's memory, without the encoders."""
    gpus: float = 0
    """The part of a GPU that the process reserves; 0 without one."""

    @property
    def held(self) -> float:
        """Bytes on the device that are there all the time."""
        return self.weights + self.gradients + self.optimizer + self.buffers

    @property
    def activations(self) -> float:
        """Bytes of activations in the phase with the highest peak."""
        return max((phase.bytes for phase in self.phases.values()), default=0)

    @property
    def peak(self) -> float:
        """Maximum bytes on the device."""
        return self.held + max(self.activations, self.encoders)


def count_memory(settings: RunSettings, policy: Any = None) -> dict[str, Memory]:
    """Process -> its memory: rollout worker, learner rank (both in one where placement or execution say so), replicas
    of reward models that are known. The settings' `policy_shapes` may be given.

    Raises InputError as `measure` does.
    """
    return dict(_processes(settings, measure(settings, policy)))


def _processes(settings: RunSettings, passes: Passes) -> Iterator[tuple[str, Memory]]:
    pools, on_ray = settings.pools, settings.execution == "ray"
    ranks = pools.learner.count if on_ray else 1
    rollout, learner = _rollout(settings, passes), _learner(settings, passes, ranks)
    rewards = dict(_reward_models(settings, passes))
    if on_ray and settings.placement == "separate":
        yield f"{pools.rollout_workers.count} x rollout worker", rollout
        yield f"{ranks} x learner rank", learner
    else:  # with one network for both, unless an average samples
        decays = settings.learner.has_old_policy and settings.learner.nft.old_decay
        network = passes.parameters * number_bytes(settings.policy.precision) if decays else 0
        both = replace(rollout, weights=learner.weights + passes.around + network, host=learner.host, gpus=learner.gpus)
        both = _together(both, replace(learner, weights=0, host=0))
        process = f"{ranks} x samples and learns" + " in step" * settings.samples_in_step
        yield process, both if on_ray else reduce(_together, rewards.values(), both)
    if on_ray:
        for model, memory in rewards.items():
            yield f"{given_pools(settings)[model].replicas} x reward {model}", memory


def _together(one: Memory, other: Memory) -> Memory:
    """What one process holds that has both."""
    return Memory(
        weights=one.weights + other.weights,
        gradients=one.gradients + other.gradients,
        optimizer=one.optimizer + other.optimizer,
        buffers=one.buffers + other.buffers,
        phases={**one.phases, **other.phases},
        encoders=one.encoders + other.encoders,
        host=one.host + other.host,
        gpus=one.gpus,
    )


def _rollout(settings: RunSettings, passes: Passes) -> Memory:
    rollout, schedule = settings.rollout, settings.schedule.build(1, settings.seed)
    trees = min(rollout.trees_per_task, settings.prompts.per_iteration)
    state = passes.state * number_bytes(rollout.latents_precision)
    kept = passes.keep.bytes(settings.prompts.per_iteration * schedule.rows) if passes.keep else 0
    leaves = min(rollout.max_batch_rows, trees * schedule.leaves)
    waiting = leaves * 4 * sum(passes.leaf.values())  # decoded, until the chunk is whole
    decode = Pass(passes.decode.flops, passes.decode.fixed + waiting, passes.decode.each)
    return Memory(
        weights=passes.parameters * number_bytes(settings.policy.precision) + passes.around,
        buffers=trees * (schedule.nodes * state + passes.conditioning) + kept,
        phases={
            ROLLOUT: Phase(passes.forward, min(rollout.max_batch_rows, trees * schedule.leaves)),
            DECODE: Phase(decode, min(rollout.decode_batch, leaves)),
        },
        encoders=passes.encoders,
        gpus=_gpus(settings, settings.pools.rollout_workers),
    )


def _learner(settings: RunSettings, passes: Passes, ranks: int) -> Memory:
    learner, size, trained = settings.learner, number_bytes(settings.policy.precision), passes.trained
    stage, offload = learner.zero_stage, learner.offload
    share = passes.parameters * size / (ranks if stage == 3 else 1)
    states = trained * MASTER_AND_MOMENTS / (ranks if stage >= 1 else 1)
    if settings.policy.precision == "float32":
        states *= 2 / 3
    start = settings.policy.start_from
    second = not learner.lora or (start is not None and start.lora == "train")
    weights = share * (1 + bool(learner.kl_weight and second))
    bucket = 0 if stage == 0 else min(trained, BUCKET) * (4 if stage == 1 else size)
    gathered = min(passes.parameters, GATHERED_PARAMETERS) * size if stage == 3 else 0
    old = learner.has_old_policy
    averages = (learner.ema_decay is not None) + old  # in float32, the first of rank 0 alone
    return Memory(
        weights=weights * (not offload.parameters) + trained * size * old,
        gradients=trained * 4 / (ranks if stage >= 2 else 1),
        optimizer=states * (not offload.optimizer),
        buffers=bucket + gathered,
        phases={LEARNER: Phase(passes.train, learner.rows_per_micro_batch)},
        host=weights * offload.parameters + states * offload.optimizer + averages * trained * 4,
        gpus=_gpus(settings, settings.pools.learner),
    )


def _reward_models(settings: RunSettings, passes: Passes) -> Iterator[tuple[str, Memory]]:
    """Model -> the memory of one that is known."""
    for model, pool in given_pools(settings).items():
        if taken := passes.score.get(model):
            own = passes.rewards[model]
            memory = Memory(
                weights=own.weights,
                phases={SCORE.format(model): Phase(taken, int(min(pool.batch_pictures, own.at_once)))},
                gpus=_gpus(settings, pool),
            )
            yield model, memory


def _gpus(settings: RunSettings, pool: PoolSettings) -> float:
    """The part of a GPU that a process of a pool reserves; in one process there is one if it is used."""
    return min(pool.gpus, 1.0) if settings.execution == "ray" else float(settings.policy.device != "cpu")
