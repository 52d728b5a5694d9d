"""From a folder to the policy that runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...proto.errors import InputError
from ...proto.recipe import imported
from ...proto.settings import PolicySettings

if TYPE_CHECKING:
    import torch

    from .base import Builder, Policy

FAMILIES = {
    "FluxPipeline": f"{__package__}.flux:FluxPolicy",
    "QwenImagePipeline": f"{__package__}.qwen_image:QwenImagePolicy",
    "StableDiffusion3Pipeline": f"{__package__}.sd3:StableDiffusion3Policy",
    "StableDiffusionPipeline": f"{__package__}.stable_diffusion:StableDiffusionPolicy",
    "WanPipeline": f"{__package__}.wan:WanPolicy",
}
"""diffusers' pipeline class -> `module:class` of its adapter. A new family is one file and one line here."""

EMBEDDED = {"glyphs": Path(__file__).parents[1] / "glyphs" / "pipeline"}


def load_policy(settings: PolicySettings, *, network_only: bool = False, build: Builder | None = None) -> Policy:
    """The policy in `settings.pretrained`; with `network_only` one that can neither encode prompts nor decode.

    With `build`, that makes its network.

    Raises InputError as `find_policy` and `find_device` do, or for a size it can't draw.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    folder, family = find_policy(settings)
    device = find_device(settings)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()  # loading has a spinner of our own
    adapter: Callable[..., Policy] = imported(family, "policy.adapter")
    if build is None:
        return adapter(folder, settings, device, network_only=network_only)
    return adapter(folder, settings, device, network_only=network_only, build=build)


def find_policy(settings: PolicySettings) -> tuple[Path, str]:
    """Where the policy lies and `module:class` of its adapter, without loading either.

    Raises InputError if there is no pipeline, or none that we know.
    """
    folder = EMBEDDED.get(settings.pretrained) or Path(settings.pretrained)
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(
            f"policy.pretrained is '{settings.pretrained}'; it must be a diffusers pipeline folder (with a "
            f"model_index.json) or one of {sorted(EMBEDDED)}"
        )
    if settings.adapter:
        return folder, settings.adapter
    try:
        family = json.loads(index.read_text()).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"policy.pretrained is '{settings.pretrained}', whose {index.name} is broken: {error}"
        ) from error
    if family not in FAMILIES:
        raise InputError(
            f"policy.pretrained is '{settings.pretrained}' of class {family}; supported pipelines are "
            f"{sorted(FAMILIES)}"
        )
    return folder, FAMILIES[family]


def find_device(settings: PolicySettings) -> torch.device:
    """The device that `settings.device` means in this process. Raises InputError if it isn't there."""
    import torch

    name = settings.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"policy.device is '{name}', and no CUDA device is there; use auto or cpu")
    return device
