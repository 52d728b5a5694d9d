"""DeepSpeed around the network: gradients added up over micro-batches, one optimizer step, checkpoints.

Two of its defaults lose gradients without a word, and are avoided here:
- several backward calls per step: ZeRO 1 and 2 would keep the last one only. `managed_gradient_accumulation: false`
  leaves the end of an update to `step()`.
- bfloat16 gradients would be added up in bfloat16. `grad_accum_dtype: fp32` (ZeRO 1 to 3).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from ..proto.atomic_files import whole
from ..proto.settings import LearnerSettings, Precision
from ..rollout_workers.policies.base import trainable
from .deepspeed_patches import (
    data_only,
    held,
    make_universal,
    plain_path,
    same_buffers,
    set_clipping,
    universal_form,
    whole_shape,
)
from .deepspeed_setup import deepspeed_config, start_deepspeed

ENGINE, UNIVERSAL = "engine", "universal"
"""Folders of a checkpoint: what the ranks have saved, and the same for any number of ranks."""


class Engine:
    """One rank's DeepSpeed engine over `network`, whose parameters it trains in place, on the device where they are."""

    def __init__(
        self, network: torch.nn.Module, settings: LearnerSettings, precision: Precision, total_updates: int
    ) -> None:
        self._parameters = trainable(network)
        # A rank that shares its weights with others (ZeRO 3) holds none of them here, and knows how many there are.
        self._trained = sum(whole_shape(own).numel() for own in self._parameters.values())
        start_deepspeed(next(iter(self._parameters.values())).device)
        import deepspeed

        self.network, self._stage, self._norm = network, settings.zero_stage, 0.0
        self._settings = settings.optimizer
        optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=settings.optimizer.learning_rate,
            betas=settings.optimizer.betas,
            weight_decay=settings.optimizer.weight_decay,
        )
        if self._stage == 0:
            optimizer.register_step_pre_hook(lambda *_: self._clip(settings.optimizer.gradient_clipping))
        course = settings.optimizer.schedule
        scheduler: Any = transformers.get_scheduler(
            "constant_with_warmup" if course == "constant" else course,
            optimizer,
            settings.optimizer.warmup_updates,
            total_updates,
        )
        (self._course,) = scheduler.lr_lambdas
        with same_buffers(network):
            self.module, *_ = deepspeed.initialize(
                model=network,
                optimizer=optimizer,
                config=deepspeed_config(settings, precision, self._trained),
            )

    @property
    def rank(self) -> int:
        """Number of this rank, from 0."""
        return torch.distributed.get_rank()

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return torch.distributed.get_world_size()

    def summed(self, value: torch.Tensor) -> float:
        """Sum of a scalar over all ranks. Collective."""
        return float(self._reduced(value, torch.distributed.ReduceOp.SUM))

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """Largest of each value over all ranks; what is no number counts as infinite. Collective."""
        # NaN would get lost where ranks compare.
        comparable = values.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        return self._reduced(comparable, torch.distributed.ReduceOp.MAX)

    def _reduced(self, values: torch.Tensor, how: torch.distributed.ReduceOp.RedOpType) -> torch.Tensor:
        values = values.clone()
        torch.distributed.all_reduce(values, how)
        return values

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` to that of the update."""
        self.module.backward(loss, scale_wrt_gas=False)

    def learning_rate(self, update: int) -> float:
        """The settings' learning rate for the run's update of that number, from 0."""
        return float(self._settings.learning_rate * self._course(update))

    def step(self, learning_rate: float) -> float:
        """Make the optimizer step and return the gradient's norm before clipping. Collective.

        Raises FloatingPointError if gradient or weights aren't finite, on all ranks.
        """
        for group in self.module.optimizer.param_groups:
            group["lr"] = learning_rate
        self.module.step()
        norm = self._norm if self._stage == 0 else _finite(float(self.module.get_global_grad_norm()))
        weights = [held(parameter) for parameter in self._parameters.values()]
        largest = torch.nn.utils.get_total_norm(weights, math.inf).to(self.module.device)
        if not torch.isfinite(self.largest(largest)):
            raise FloatingPointError("a weight isn't finite after the optimizer's step")
        return norm

    def _clip(self, limit: float) -> None:
        """Clip the gradients to the norm `limit` (0: don't) and note their norm; from stage 1 on DeepSpeed does."""
        self._norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), limit or math.inf))
        _finite(self._norm)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within the block the trained parameters of rank 0 are whole, with ZeRO 3 too, then on the CPU. Collective."""
        weights = self.weights()
        own = {name: self._parameters[name].data for name in weights}
        try:
            for name, weight in weights.items():
                self._parameters[name].data = weight
            yield
        finally:
            for name, share in own.items():
                self._parameters[name].data = share

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every trained weight, by name; with ZeRO 3 of the whole one."""
        return {name: tuple(whole_shape(parameter)) for name, parameter in self._parameters.items()}

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights in the network's dtype, by name. Collective.

        References; with ZeRO 3 copies on the CPU, on rank 0 alone.
        """
        if self._stage < 3:
            return {name: parameter.detach() for name, parameter in self._parameters.items()}
        import deepspeed

        weights = {}
        for name, parameter in self._parameters.items():  # never more than one at once whole
            with deepspeed.zero.GatheredParameters(parameter):
                if self.rank == 0:
                    weights[name] = parameter.detach().to("cpu", copy=True)
        return weights

    def master_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The trained weights in float32, as the optimizer keeps them, one by one; on rank 0 alone, though every rank
        has to go through them. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self._parameters.items():
            weight = safe_get_full_fp32_param(parameter) if self._stage else parameter.detach()
            if self.rank == 0:
                yield name, weight

    def save(self, folder: Path) -> None:
        """Write weights and optimizer. Collective."""
        with plain_path(folder) as path:
            self.module.save_checkpoint(path, tag=ENGINE, exclude_frozen_parameters=True, save_latest=False)

    def load(self, folder: Path, saved_by: int) -> None:
        """Take up what `saved_by` ranks have saved. Collective. Raises ValueError if it isn't there.

        The optimizer then works as the settings of this engine say.
        """
        other = self._stage > 0 and saved_by != self.ranks
        tag = self._universal(folder) if other else ENGINE
        # ZeRO cuts its state into one part per rank; for another number of them it must be put together first.
        with universal_form(self.module, other), data_only(), plain_path(folder) as path:
            found, _ = self.module.load_checkpoint(path, tag=tag, load_module_strict=False)
        if found is None:
            raise ValueError(f"{folder} holds no engine checkpoint")
        self._configure_optimizer()

    def _configure_optimizer(self) -> None:
        """Have the optimizer work as the settings say: DeepSpeed restores how it worked when it was saved."""
        settings = self._settings
        for group in self.module.optimizer.param_groups:
            group.update(betas=settings.betas, weight_decay=settings.weight_decay)
        if self._stage:
            set_clipping(self.module, settings.gradient_clipping)

    def _universal(self, folder: Path) -> str:
        """Make DeepSpeed's universal form of a checkpoint beside it, unless it is there, and return its tag."""
        if self.rank == 0 and not (folder / UNIVERSAL).exists():
            with whole(folder / UNIVERSAL) as temporary, plain_path(folder) as path:
                make_universal(f"{path}/{ENGINE}", f"{path}/{temporary.name}")
        torch.distributed.barrier()
        return UNIVERSAL


def _finite(norm: float) -> float:
    """`norm`, as it is. Raises FloatingPointError if it isn't finite, for which DeepSpeed has -1 too."""
    if not (math.isfinite(norm) and norm >= 0):
        raise FloatingPointError("the gradient isn't finite")
    return norm
