"""What phases have computed, in floating-point operations, and what share of the devices' peak that is.

Imports no models, for controllers use it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...proto.settings import RunSettings
from ...proto.usage import NOTHING, Usage, note_peak
from ...reward_service.scorers import reward_models
from ..run.loop import IterationReport
from .gpus import gpu_of_device

if TYPE_CHECKING:
    import torch

FORWARD, TRAINED, DECODED, SCORED = "forward row", "trained row", "decoded leaf", "leaf scored by "
"""Kinds of work; the last is followed by the reward model's name."""


def count_kinds(settings: RunSettings) -> dict[str, float]:
    """Kind of work -> the operations of one row or leaf; without those that can't be counted, which a run does without.

    It imports the models' libraries. Random numbers stay as they are.
    """
    try:
        from .flops import count_work

        work = count_work(settings)
    except Exception:  # a policy of the user's own may fail on shapes in any way
        logging.getLogger(__name__).debug("the run's work can't be counted", exc_info=True)
        return {}
    models, counted = reward_models(settings.rewards), work.score_leaf
    scored = {SCORED + model: flops for model in models if (flops := counted[model]) is not None}
    return {FORWARD: work.forward_row, TRAINED: work.trained_row, DECODED: work.decode_leaf, **scored}


@dataclass(frozen=True)
class PhaseFlops:
    """The floating-point operations of a run's phases: with what gradient checkpointing computes again, without padding
    and previews of recorded trees."""

    settings: RunSettings
    kinds: Mapping[str, float]
    """Kind of work -> the operations of one, from `count_kinds`."""

    def of(self, report: IterationReport) -> dict[str, float]:
        """Phase -> its operations in an iteration; without phases whose networks weren't counted."""
        kinds, flops = self.kinds, dict[str, float]()
        leaves = next(iter(report.rewards.values())).size
        decoded = leaves * self.settings.decoded_trees(report.iteration) / self.settings.prompts.per_iteration
        if FORWARD in kinds:
            flops["rollout"] = report.forward_passes * kinds[FORWARD] + decoded * kinds[DECODED]
            flops["learning"] = sum(update.rows for update in report.updates) * kinds[TRAINED]
            if not self.settings.learner.kl_weight:  # else the reference's pass is counted with the trained row
                flops["learning"] += sum(update.reference_rows for update in report.updates) * kinds[FORWARD]
        if scored := self.of_models(report):
            flops["scoring"] = sum(scored.values())
        return flops

    def of_models(self, report: IterationReport) -> dict[str, float]:
        """Reward model -> its operations in an iteration; without models that weren't counted."""
        leaves = next(iter(report.rewards.values())).size
        models = {model: SCORED + model for model in reward_models(self.settings.training_rewards)}
        return {model: leaves * self.kinds[kind] for model, kind in models.items() if kind in self.kinds}

    def complete(self, report: IterationReport) -> None:
        """Note the operations of an iteration in its report, and its utilisation."""
        report.flops, report.reward_flops = self.of(report), self.of_models(report)
        report.utilisation = utilisation(report.flops, report.usage)
        report.reward_utilisation = utilisation(report.reward_flops, report.reward_usage)
        if report.reward_usage:  # not of models on other devices, or that weren't counted
            known = report.reward_utilisation.keys()
            flops = sum(report.reward_flops[model] for model in known)
            usage = sum((report.reward_usage[model] for model in known), NOTHING)
            report.utilisation.pop("scoring", None)
            report.utilisation |= utilisation({"scoring": flops}, {"scoring": usage})


def utilisation(flops: Mapping[str, float], usage: Mapping[str, Usage]) -> dict[str, float]:
    """Phase -> its operations as a share of what its devices could have done in the seconds in which it was at work.

    Without phases on devices whose peak isn't known.
    """
    possible = {phase: usage[phase].possible_flops for phase in flops if phase in usage}
    return {phase: flops[phase] / most for phase, most in possible.items() if most}


def note_device(device: "torch.device", precision: str) -> None:
    """Note the peak of this process' GPU in a precision, if its kind is known: its usage is measured against it."""
    import torch

    if device.type == "cuda" and torch.cuda.is_available():
        gpu = gpu_of_device(torch.cuda.get_device_name(device))
        if gpu:
            note_peak(gpu.peak(precision))
