"""Networks compiled by torch."""

import os
import shutil
from typing import Any

from ...proto.errors import InputError
from .diffusers_internals import has_repeated_blocks


def compile_network(network: Any) -> None:
    """Have torch compile the blocks of which the network is made, or all of it, at its first call.

    Fused operations round as single ones do: passes with and without gradient are fused otherwise, and in bfloat16
    the learner's log-probabilities would not be those of the rollout.

    Raises InputError without a compiler.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name):
        raise InputError("policy.compile is true, and there is no C++ compiler (g++, clang++, or what CXX names)")
    how: dict[str, Any] = {"dynamic": True, "options": {"emulate_precision_casts": True}}
    if has_repeated_blocks(network):
        network.compile_repeated_blocks(**how)
    else:
        network.compile(**how)
