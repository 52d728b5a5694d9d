"""Private parts of DeepSpeed that this project uses or changes. `pyproject.toml` bounds its version."""

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
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

    before = {name: value for name, value in os.environ.items() if name == DATA_ONLY}
    os.environ[DATA_ONLY] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        del os.environ[DATA_ONLY]
        os.environ |= before


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


def make_universal(saved: str, made: str) -> None:
    """Make DeepSpeed's universal form of the checkpoint in the folder `saved`, in the folder `made`.

    Their paths must be of plain characters.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    with redirect_stdout(None), data_only():
        main(
            Namespace(
                input_folder=saved,
                output_folder=made,
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=False,
                inject_missing_state=True,
            )
        )


def whole_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Shape of a parameter, with ZeRO 3 of the whole one, of which a rank holds a share alone."""
    return getattr(parameter, "ds_shape", parameter.shape)


def held(parameter: torch.nn.Parameter) -> torch.Tensor:
    """What this rank holds of a parameter: all of it, or with ZeRO 3 its share."""
    return getattr(parameter, "ds_tensor", parameter).detach()


def set_clipping(engine: Any, limit: float) -> None:
    """Have an engine's optimizer, from ZeRO 1 on, clip gradients to the norm `limit` (0: don't)."""
    engine.optimizer.clip_grad = limit


def compile_no_collective() -> None:
    """Have ranks on CPUs speak by gloo alone.

    DeepSpeed would compile a collective in shared memory at the first start: half a minute, and it takes a compiler.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


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
