"""The attention kernels of a policy's networks."""

import logging
from typing import Any

import torch

from ...proto.errors import InputError
from ...proto.settings import Attention
from .diffusers_internals import attention_can_be_chosen
from .weights import one_line


def leave_out_cudnn() -> None:
    """Keep this process from choosing cuDNN's attention of its own accord.

    PyTorch prefers it on Hopper. With PyTorch 2.11 and cuDNN 9.19 every backward pass in bfloat16 ended in an illegal
    memory access there (H100, heads of 24 and of 128 channels); all other kernels train.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def choose_attention(network: Any, name: Attention) -> None:
    """Have a network of diffusers attend with the kernels of this name.

    Raises InputError if their package isn't installed, they don't train where the network is, or it doesn't let them
    be chosen.
    """
    if not attention_can_be_chosen(network):
        if name == "native":
            return
        raise InputError(
            f"policy.attention is '{name}', and a {type(network).__name__} doesn't let its attention be chosen; leave "
            "it out"
        )
    if name == "flex" and next(network.parameters()).device.type == "cpu":
        raise InputError("policy.attention is 'flex', which has no backward pass on a CPU; leave it out")
    calls_it_experimental = logging.getLogger("diffusers.models.modeling_utils")
    calls_it_experimental.addFilter(_without_warnings)
    try:
        network.set_attention_backend(name)
    except (RuntimeError, ImportError) as error:  # the package isn't there, or is too old
        raise InputError(f"policy.attention is '{name}', which can't be used here: {one_line(error)}") from error
    finally:
        calls_it_experimental.removeFilter(_without_warnings)


def _without_warnings(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING
