"""The noise levels that a diffusers pipeline gives to a number of steps."""

from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from ...proto.errors import InputError
from ...proto.settings import PolicySettings


class NoiseLevels:
    """The noise levels of a pipeline's scheduler. A family defines what differs from what stands here."""

    takes_sigmas = True
    """Whether the pipeline takes noise levels of one's own."""
    spaces_levels = False
    """Whether the pipeline spaces noise levels, evenly, and the scheduler only shifts them."""
    pipeline: Any
    settings: PolicySettings

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        raise NotImplementedError

    def scheduler(self, published: Any) -> Any:
        """The scheduler to take noise levels from, in place of the `published` one."""
        if self.settings.sigmas:
            return FlowMatchEulerDiscreteScheduler(published.config.num_train_timesteps)
        if self.settings.shift is None:
            return published
        return FlowMatchEulerDiscreteScheduler.from_config(
            published.config, use_dynamic_shifting=False, shift=self.settings.shift
        )

    def sigmas(self, steps: int) -> list[float]:
        """The scheduler's noise levels, shifted by the number of tokens where it asks for that, or the recipe's own.

        Raises InputError for another number of steps than that of its own.
        """
        scheduler, own = self.pipeline.scheduler, self.settings.sigmas
        if own and len(own) != steps:
            raise InputError(
                f"schedule.steps (or evaluation.steps) is {steps}; policy.sigmas has {len(own)} noise levels: it must "
                f"be {len(own)}"
            )
        mu = self.dynamic_shift(steps) if scheduler.config.use_dynamic_shifting else None
        scheduler.set_timesteps(steps, sigmas=own or self.even_levels(steps), mu=mu)
        return [float(sigma) for sigma in scheduler.sigmas]

    def unlike_evaluations(self, steps: int) -> str:
        """How the published scheduler's steps differ from those of evaluations; empty if they don't."""
        return ""

    def dynamic_shift(self, steps: int) -> float:
        """Logarithm of the shift that the model gives to this number of tokens (and of steps)."""
        config = self.pipeline.scheduler.config
        return calculate_shift(
            self.tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )

    def even_levels(self, steps: int) -> Any:
        """Noise levels before the shift, from 1 to 1 / steps, [steps]; None if they are the scheduler's own."""
        own = not self.spaces_levels or self.pipeline.scheduler.config.get("use_flow_sigmas")
        return None if own else np.linspace(1.0, 1 / steps, steps)
