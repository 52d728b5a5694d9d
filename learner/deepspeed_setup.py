"""Setting up DeepSpeed in a process: its ranks, device and configuration."""

import os
from typing import Any

import torch

from ..proto.settings import LearnerSettings, OffloadSettings, Precision
from .deepspeed_patches import compile_no_collective, use_exact_linear

BUCKET = 500_000_000
"""Maximum numbers in the buffer in which DeepSpeed collects gradients from ZeRO 1 on: its default. It would reserve all
of it, 2 GB, beside the smallest LoRA."""


def join_ranks(store: Any, device: torch.device, *, rank: int, ranks: int) -> None:
    """Make this process rank `rank` of `ranks`, which meet at `store`. To be called before an `Engine` is made."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks)


def start_deepspeed(device: torch.device) -> None:
    """Have DeepSpeed use `device`; this process is its only rank unless it has joined others."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    if not torch.distributed.is_initialized():
        # In memory: no port to find free, and no environment that child processes would take for their own.
        join_ranks(torch.distributed.HashStore(), device, rank=0, ranks=1)  # type: ignore[attr-defined]
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    use_exact_linear()
    compile_no_collective()
    if not deepspeed.comm.is_initialized():
        backend = torch.distributed.get_backend()
        deepspeed.init_distributed(backend, verbose=False, auto_mpi_discovery=False)


def deepspeed_config(settings: LearnerSettings, precision: Precision, trained: int = BUCKET) -> dict[str, Any]:
    """DeepSpeed's configuration for a network of which so many parameters are trained."""
    half = precision == "bfloat16"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": settings.optimizer.gradient_clipping if settings.zero_stage else 0.0,
        "zero_optimization": {
            "stage": settings.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": min(trained, BUCKET),
            **_offload(settings.offload),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": half},
        "data_types": {"grad_accum_dtype": "fp32"} if half else {},
        "steps_per_print": None,
    }


def _offload(settings: OffloadSettings) -> dict[str, Any]:
    parts = {"offload_optimizer": settings.optimizer, "offload_param": settings.parameters}
    return {name: {"device": "cpu"} for name, on in parts.items() if on}
