"""Loading a policy from its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...proto.errors import InputError
from ...proto.prompt import pictures_of
from ...proto.recipe import imported
from ...proto.settings import PolicySettings, RunSettings
from .folder import INDEX, read_index

if TYPE_CHECKING:
    import torch

    from .base import Builder, Policy


class Family(NamedTuple):
    """A family of models."""

    adapter: str
    """`module:class`."""
    max_sequence_length: int | None
    """Maximum number of a prompt's tokens; None if it isn't a setting."""
    pictures: range = range(1)
    """How many pictures a prompt may have."""
    seen: bool = True
    """Whether leaves are pictures or clips."""
    heard: bool = False
    """Whether leaves have a sound."""


FAMILIES = {
    "ChromaPipeline": Family(f"{__package__}.chroma:ChromaPolicy", 512),
    "Flux2KleinPipeline": Family(f"{__package__}.flux2:Flux2KleinPolicy", 512, range(5)),
    "Flux2Pipeline": Family(f"{__package__}.flux2:Flux2Policy", 512, range(11)),
    "FluxKontextPipeline": Family(f"{__package__}.flux:FluxKontextPolicy", 512, range(1, 2)),
    "FluxPipeline": Family(f"{__package__}.flux:FluxPolicy", 512),
    "HunyuanVideo15ImageToVideoPipeline": Family(
        f"{__package__}.hunyuan_video:HunyuanVideoFromPicturePolicy", 1000, range(1, 2)
    ),
    "HunyuanVideo15Pipeline": Family(f"{__package__}.hunyuan_video:HunyuanVideoPolicy", 1000),
    "LTX2ImageToVideoPipeline": Family(f"{__package__}.ltx2:LTX2FromPicturePolicy", 1024, range(1, 2), heard=True),
    "LTX2Pipeline": Family(f"{__package__}.ltx2:LTX2Policy", 1024, range(2), heard=True),
    "QwenImage21Pipeline": Family(f"{__package__}.qwen_image_21:QwenImage21Policy", 8191, range(4)),
    "QwenImageEditPipeline": Family(f"{__package__}.qwen_image_edit:QwenImageEditPolicy", 4000, range(1, 2)),
    "QwenImageEditPlusPipeline": Family(f"{__package__}.qwen_image_edit:QwenImageEditPlusPolicy", 4000, range(1, 4)),
    "QwenImagePipeline": Family(f"{__package__}.qwen_image:QwenImagePolicy", 1024),
    "StableAudioPipeline": Family(f"{__package__}.stable_audio:StableAudioPolicy", None, seen=False, heard=True),
    "StableDiffusion3Pipeline": Family(f"{__package__}.sd3:StableDiffusion3Policy", 512),
    "StableDiffusionPipeline": Family(f"{__package__}.stable_diffusion:StableDiffusionPolicy", None),
    "StableDiffusionXLPipeline": Family(f"{__package__}.stable_diffusion:StableDiffusionXLPolicy", None),
    "WanImageToVideoPipeline": Family(f"{__package__}.wan:WanImageToVideoPolicy", 512, range(1, 2)),
    "WanPipeline": Family(f"{__package__}.wan:WanPolicy", 512),
    "ZImagePipeline": Family(f"{__package__}.z_image:ZImagePolicy", 512),
}
"""diffusers' pipeline class -> its family. A new family is one file and one line here."""

EMBEDDED = {name: Path(__file__).parents[1] / name / "pipeline" for name in ("glyphs", "shapes")}
"""Name in a recipe -> folder of the policies that are shipped."""


def load_policy(settings: PolicySettings, *, network_only: bool = False, build: Builder | None = None) -> Policy:
    """The policy in `settings.pretrained`; with `network_only` one that can neither encode prompts nor decode.

    With `build`, that makes its network.

    Raises InputError as `find_policy` and `find_device` do, or for a size it can't draw.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    from .attention import leave_out_cudnn

    folder, family = find_policy(settings)
    device = find_device(settings)
    leave_out_cudnn()
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()  # loading has a spinner of our own
    adapter = find_adapter(family)
    if build is None:
        return adapter(folder, settings, device, network_only=network_only)
    return adapter(folder, settings, device, network_only=network_only, build=build)


def find_adapter(name: str) -> Callable[..., Policy]:
    """The class `module:class` of an adapter. Raises InputError if it can't be imported, or isn't a policy's.

    One of the user's own tells what it raises, but InputError and RunFailed, as RunFailed with its place.
    """
    from .base import Policy
    from .own_adapter import told_with_its_place

    adapter = imported(name, "policy.adapter")
    lacks = [method for method, value in vars(Policy).items() if callable(value) and not method.startswith("_")]
    lacks = [method for method in lacks if not callable(getattr(adapter, method, None))]
    if not isinstance(adapter, type) or lacks:
        reason = f"it has no {lacks[0]}" if isinstance(adapter, type) else "it is no class"
        raise InputError(f"policy.adapter is '{name}'; it must be a class that can do what a Policy does, and {reason}")
    return adapter if adapter.__module__.startswith(f"{__package__}.") else told_with_its_place(name, adapter)


def find_policy(settings: PolicySettings) -> tuple[Path, str]:
    """The folder of the policy, and `module:class` of its adapter, without loading either.

    Raises InputError if there is no pipeline, none that we know, or one that takes no prompts of that length.
    """
    folder = EMBEDDED.get(settings.pretrained) or Path(settings.pretrained)
    if settings.config:
        from .single_file import converted

        folder = converted(folder, settings.config)
    if not os.path.lexists(folder / INDEX):
        raise InputError(
            f"policy.pretrained is '{settings.pretrained}'; it must be a diffusers pipeline folder (with a {INDEX}), "
            f"{', '.join(EMBEDDED)}, or a .safetensors file with policy.config"
        )
    if settings.adapter:
        return folder, settings.adapter
    family = read_index(folder)["_class_name"]
    if family not in FAMILIES:
        raise InputError(
            f"policy.pretrained is '{settings.pretrained}' of class {family}; supported pipelines are "
            f"{', '.join(sorted(FAMILIES))}"
        )
    adapter, limit = FAMILIES[family].adapter, FAMILIES[family].max_sequence_length
    if limit is not None and settings.max_sequence_length > limit:
        raise InputError(
            f"policy.max_sequence_length is {settings.max_sequence_length}; a {family} takes at most {limit}"
        )
    return folder, adapter


def check_pictures(settings: RunSettings, prompts: Sequence[str]) -> None:
    """Raises InputError for prompts with more or fewer pictures than the policy reads, or not as many each.

    Nothing is known of a user's adapter, and of a policy that isn't here.
    """
    column, setting = settings.prompts.picture_column, "prompts.picture_column"
    found = sorted({len(pictures_of(prompt)) for prompt in prompts})
    if len(found) > 1:
        raise InputError(f"{setting} is '{column}', with {found[0]} to {found[-1]} pictures; all rows need as many")
    try:
        folder, _ = find_policy(settings.policy)
    except InputError:  # which those report who need it here
        return
    if settings.policy.adapter:
        return
    index = read_index(folder)
    family = index["_class_name"]
    allowed = range(2) if index.get("expand_timesteps") else FAMILIES[family].pictures  # Wan 2.2 5B does both
    if found[0] not in allowed:
        least, most = allowed[0], allowed[-1]
        takes = "no pictures" if not most else f"{least} to {most} pictures" if least < most else "one picture"
        has = f"is '{column}', with {found[0]} in each row" if column else "is null"
        do = "leave it out" if not most else "name the column with as many"
        raise InputError(f"{setting} {has}; a {family} takes {takes} with a prompt: {do}")


def find_family(settings: PolicySettings) -> Family | None:
    """The family of a policy; None for a user's adapter. Raises InputError as `find_policy` does."""
    folder, _ = find_policy(settings)
    return None if settings.adapter else FAMILIES[read_index(folder)["_class_name"]]


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
