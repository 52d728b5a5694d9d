"""LoRA files for other tools: ComfyUI, kohya's sd-scripts and musubi-tuner.

Both take a layer's factor alpha / rank from a tensor `alpha` beside its weights, where diffusers keeps it in the file's
header. Without the tensor they take 1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import get_peft_model_state_dict

from ...proto.errors import InputError
from .lora_names import NAMED_AS_IN_DIFFUSERS, OWN_NAMES, Form, own_name, sdxl_name
from .pipeline import PipelinePolicy
from .start import LORA_STEM, lora_files, lora_of

FACTORS = {"lora_A": "lora_down", "lora_B": "lora_up"}
"""PEFT's names of a LoRA's two matrices, which go with paths in dots, and kohya's, which go with underscores."""


def save_lora(policy: PipelinePolicy, folder: Path, form: Form, name: str) -> list[Path]:
    """Write the LoRA of a policy into files of `folder` that begin with `name`, one for each network; returns them.

    Raises InputError for an architecture or a layer for which the form has no name.
    """
    networks = policy.loaded_networks
    files = [folder / f"{name}{file.removeprefix(LORA_STEM)}" for file in lora_files(len(networks))]
    for file, network in zip(files, networks.values(), strict=True):
        save_as(network, file, form)
    return files


def save_as(network: Any, to: Path, form: Form) -> None:
    """Write the LoRA of a network as another tool reads it. Raises InputError as `save_lora` does."""
    rank, alpha, _ = lora_of(network)
    trained: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in get_peft_model_state_dict(network).items():
        path, factor = key.removesuffix(".weight").rsplit(".", 1)
        trained.setdefault(path, {})[factor] = value
    weights = {}
    for layer, paths in dict(_layer(path, form, network) for path in trained).items():
        factors = trained.get(paths[0], {})
        if len(paths) > 1:
            rows = [network.get_submodule(path).out_features for path in paths]
            factors = fused([trained.get(path) for path in paths], rows)
        for factor, value in factors.items():
            weights[f"{layer}.{factor if '.' in layer else FACTORS[factor]}.weight"] = value.contiguous()
        weights[f"{layer}.alpha"] = torch.tensor(float(alpha * len(factors["lora_A"]) / rank))
    facts = {"format": "pt", "ss_network_module": "networks.lora"}
    safetensors.torch.save_file(weights, to, facts | {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)})


def fused(parts: Sequence[Mapping[str, torch.Tensor] | None], rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """The LoRA of a layer whose rows are those of several, from theirs: its rank is the sum of their ranks.

    `parts` has None for a layer that isn't trained, `rows` the output features of each.
    """
    present = [part for part in parts if part]
    nothing = present[0]["lora_B"]
    ups = [part["lora_B"] if part else nothing.new_zeros(own, 0) for part, own in zip(parts, rows, strict=True)]
    return {"lora_A": torch.cat([part["lora_A"] for part in present]), "lora_B": torch.block_diag(*ups)}


def _layer(path: str, form: Form, network: Any) -> tuple[str, list[str]]:
    """The layer of a file that a layer of diffusers becomes, and the paths of all those that it is made of."""
    kind, paths = type(network).__name__, [path]
    if kind == "UNet2DConditionModel":
        # kohya's tools train SD 1.5 by diffusers' names, and SDXL by Stability's. ComfyUI reads both.
        own = sdxl_name(path, network.config) if network.config.addition_embed_type == "text_time" else path
        return f"lora_unet_{own.replace('.', '_')}", paths
    if blocks := OWN_NAMES[form].get(kind):
        own, paths = own_name(path, blocks)
        return f"lora_unet_{own.replace('.', '_')}" if form == "kohya" else f"diffusion_model.{own}", paths
    if form == "comfyui" and kind in NAMED_AS_IN_DIFFUSERS:
        return f"transformer.{path}", paths
    raise InputError(f"--format is '{form}', which has no names for the layers of a {kind}; use diffusers")
