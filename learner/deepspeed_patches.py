"""Private parts of DeepSpeed that this project uses or changes. `pyproject.toml` bounds its version."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

DATA_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""PyTorch's variable that overrules `weights_only=False`."""


@contextmanager
def plain_path(folder: Path) -> Iterator[str]:
    """Another path to a folder, of plain characters: DeepSpeed puts paths into patterns of files and of text."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{opened}"
    finally:
        os.close(opened)


@contextmanager
def data_only() -> Iterator[None]:
    """Within the block PyTorch unpickles tensors, plain data and three harmless classes of DeepSpeed's, nothing else.

    DeepSpeed asks for everything when it loads a checkpoint, also for what could run code.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ[DATA_ONLY] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        del os.environ[DATA_ONLY]


@contextmanager
def same_buffers(network: torch.nn.Module) -> Iterator[None]:
    """DeepSpeed casts them; the sampler's are as the model has them."""
    buffers = [(module, dict(module.named_buffers(recurse=False))) for module in network.modules()]
    yield
    for module, own in buffers:
        for name, buffer in own.items():
            setattr(module, name, buffer)


@contextmanager
def universal_form(engine: Any, universal: bool) -> Iterator[None]:
    """Within the block an engine reads checkpoints in DeepSpeed's universal form if `universal`, else in its own."""
    engine._config.load_universal_checkpoint = universal
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False


def use_exact_linear() -> None:
    """Have layers at ZeRO 3 compute what PyTorch's do.

    DeepSpeed replaces the function of linear layers by one that saves memory, and adds the bias to products that are
    rounded already: in bfloat16 the learner's log-probabilities would not be those of the rollout.
    """
    from deepspeed.runtime.zero import linear, partition_parameters

    class Linear(linear.LinearFunctionForZeroStage3):  # type: ignore[misc]
        @staticmethod
        def forward(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            return torch._C._nn.linear(input, weight, bias)

    partition_parameters.zero3_linear_wrap = lambda input, weight, bias=None: Linear.apply(input, weight, bias)
