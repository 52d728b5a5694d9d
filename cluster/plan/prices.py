"""What a recipe costs on a kind of GPU: seconds from FLOPs and utilisation, sizes from shapes."""

from dataclasses import dataclass

from ...proto.settings import RunSettings
from ...reward_service.scorers import precision_on_gpu
from ...rollout_workers.policies.decoded import MEDIA_BYTES
from .calibration import DECODE, FORWARD, TRAINED, Calibration, Pace
from .costs import Cluster, Costs, given_pools, training_models
from .device import Device
from .flops import Work, count_work
from .gpus import OBJECT_STORE, Gpu
from .passes import measure, number_bytes

PUT_SPEED = 17.5e9
"""Bytes per second into the object store; measured (docs/scaling.md), as all that follows."""
PART_MESSAGE, SCORE_REPLY, WINDOW_TREE, WINDOW_RANK = 1.31e-3, 1.11e-3, 0.05e-3, 0.19e-3
RAY_CORES = 0.1
"""Cores that Ray's own processes take all the time."""
REWARD_CORE = 50e9
"""FLOP/s of a processor core in a reward model without a GPU; assumed. One of an EPYC reached 75e9 in CLIP's ViT-L."""
LATENCY = 0.002
STATES = 3
"""Numbers in float32 that an optimizer step reads and writes for a parameter: weight and two moments."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of what processes send and work on, bytes."""

    picture: float
    """Bytes of a leaf: a picture, a clip or a sound."""
    state: float
    conditioning: float
    network: float
    """Bytes of all weights of the network."""
    trained: float
    """Bytes of the trained weights, which are also those that are published."""
    parameters: int
    """Number of trained parameters."""


def count_sizes(settings: RunSettings) -> Sizes:
    """Sizes of a recipe, from shapes alone. Raises InputError as `measure` does."""
    passes, own = measure(settings), settings.policy
    size = number_bytes(own.precision)
    return Sizes(
        picture=sum(MEDIA_BYTES[name] * numbers for name, numbers in passes.leaf.items()),
        state=passes.state * number_bytes(settings.rollout.latents_precision),
        conditioning=passes.conditioning,
        network=passes.parameters * size,
        trained=passes.trained * size,
        parameters=passes.trained,
    )


@dataclass(frozen=True)
class Prices:
    """A recipe's work and sizes, priced for a kind of GPU."""

    settings: RunSettings
    work: Work
    sizes: Sizes
    gpu: Gpu
    calibration: Calibration
    trained_share: float = 1.0
    """Share of rows with an advantage."""

    @classmethod
    def of(cls, settings: RunSettings, device: Device, trained_share: float = 1.0) -> "Prices":
        """The prices of a recipe on a device. Raises InputError as `measure` does."""
        sizes = count_sizes(settings)  # before the work: so all is measured once
        return cls(settings, count_work(settings), sizes, *device, trained_share)

    def costs(self, cluster: Cluster, shared_rewards: bool = False, colocated: bool = False) -> Costs:
        """The costs on so many processes. Reward models that share GPUs with sampling take their time from it, and
        `colocated` ranks that share one network (ZeRO 3) gather it for every pass."""
        work, pace = self.work, self.calibration.pace
        old_share = self.settings.learner.old_policy_share
        scores, reduced = self.scores(), self._reduced(cluster.ranks)
        beside = sum(seconds for model, seconds in scores.items() if not self.cores_of(model))
        decoded = any(reward.reads == "media" for reward in self.settings.training_rewards.values())
        gathered = colocated * self._gathered(cluster.ranks, 1)
        forward = self._seconds(work.forward_row, pace(FORWARD))
        trained = self._seconds(work.trained_row, pace(TRAINED))
        learns = {} if old_share else {rows: own + reduced for rows, own in pace(TRAINED).of(trained).items()}
        return Costs(
            forward=pace(FORWARD).call + gathered,
            forward_row=forward,
            forward_calls={rows: own + gathered for rows, own in pace(FORWARD).of(forward).items()},
            decode_picture=decoded * self._seconds(work.decode_leaf, pace(DECODE)) + shared_rewards * beside,
            score_batch=max(self._reward_pace(model).call for model in scores),
            score_pictures=scores,
            micro_batch=pace(TRAINED).call + reduced,
            learn_row=trained + old_share * forward,
            learn_calls=learns,
            trained_share=self.trained_share,
            update=self._update(cluster.ranks),
            load_weights=self.sizes.trained / self.gpu.copies,
            picture_bytes=self.sizes.picture,
            state_bytes=self.sizes.state,
            conditioning_bytes=self.sizes.conditioning,
            weights_bytes=self.sizes.trained,
            put=PUT_SPEED,
            network=OBJECT_STORE,
            cores=self.calibration.cores,
            slowdown=self.calibration.slowdown,
            standing=RAY_CORES,
            latency=LATENCY,
            part_message=PART_MESSAGE,
            score_reply=SCORE_REPLY,
            window_tree=WINDOW_TREE,
            window_rank=WINDOW_RANK,
        )

    def scores(self) -> dict[str, float]:
        """Model that scores in every iteration -> its seconds per picture. What isn't known is nothing."""
        return {
            model: max(self._scoring(model, self.work.score_leaf.get(reward)) for reward in given)
            for model, given in training_models(self.settings).items()
        }

    def unknown(self) -> list[str]:
        """Reward models whose seconds are neither measured nor counted."""
        models, paces = training_models(self.settings), self.calibration.paces
        return [
            model
            for model, given in models.items()
            if model not in paces and not any(self.work.score_leaf.get(reward) for reward in given)
        ]

    def scores_assumed(self) -> list[str]:
        """Reward models whose FLOPs are known, and whose pace is assumed."""
        models, paces = training_models(self.settings), self.calibration.paces
        return [
            model
            for model, given in models.items()
            if (self.cores_of(model) or model not in paces) and any(self.work.score_leaf.get(name) for name in given)
        ]

    def _scoring(self, model: str, flops: float | None) -> float:
        """Seconds of a picture in a reward model."""
        if flops and (cores := self.cores_of(model)):
            return flops / (REWARD_CORE * cores)
        return self._seconds(flops, self._reward_pace(model), precision_on_gpu(model))

    def _reward_pace(self, model: str) -> Pace:
        return self.calibration.scoring(model, precision_on_gpu(model))

    def cores_of(self, model: str) -> int:
        """Number of processor cores of a reward model that has no GPU; 0 for others, and where nothing has one."""
        if self.gpu.name == "cpu":
            return 0
        settings, pool = self.settings, given_pools(self.settings)[model]
        sees = settings.execution == "in_process" or pool.gpus
        return 0 if sees and settings.rewards[model].device != "cpu" else settings.threads_of(pool)

    def _seconds(self, flops: float | None, pace: Pace, precision: str | None = None) -> float:
        """Seconds of a row or picture; of a network in the policy's precision if no other is given."""
        if flops and pace.utilisation:
            return flops / (self.gpu.peak(precision or self.settings.policy.precision) * pace.utilisation)
        return pace.item or 0.0

    def _link(self, ranks: int) -> float:
        return self.gpu.collectives(across_nodes=ranks > Cluster.per_node)

    def _reduced(self, ranks: int) -> float:
        """Seconds of what ranks exchange for a micro-batch: gradients from stage 2 on, weights in stage 3."""
        learner = self.settings.learner
        reduced = self.sizes.trained * (learner.zero_stage >= 2 and ranks > 1)
        return self._gathered(ranks, 3 if learner.gradient_checkpointing else 2) + reduced / self._link(ranks)

    def _gathered(self, ranks: int, times: int) -> float:
        """Seconds in which ranks gather the network so often, if they share it (stage 3)."""
        learner = self.settings.learner
        weights = times * self.sizes.network * (learner.zero_stage == 3)
        from_host = weights / self.gpu.copies * learner.offload.parameters
        return from_host + (weights / self._link(ranks) if ranks > 1 else 0)

    def _update(self, ranks: int) -> float:
        """Seconds of an optimizer step: its states in memory, and what ranks exchange."""
        learner, sizes = self.settings.learner, self.sizes
        states = 2 * STATES * 4 * sizes.parameters / (ranks if learner.zero_stage else 1)
        memory = self.gpu.copies if learner.offload.optimizer else self.gpu.bandwidth
        exchanged = sizes.trained * (2 if learner.zero_stage < 2 else 1) if ranks > 1 else 0
        return states / memory + exchanged / self._link(ranks)
