"""The LoRA of a network: new or taken up from an earlier run, saved, or merged into the weights."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict

from ...proto.errors import InputError
from ...proto.settings import LoraSettings
from .folder import Part
from .start import ADAPTER, adapted_layers, delta, lora_of
from .weights import without_numbers


def add_adapters(
    network: Any, settings: LoraSettings, usual_modules: Sequence[str], earlier: torch.nn.Module | None
) -> None:
    """Put a LoRA on a network, on the `usual_modules` if the settings name none, and freeze all else.

    With `earlier`, a network with a LoRA, that one is trained further. Raises InputError for layers that can't have
    one, or settings of another LoRA.
    """
    given = settings.target_modules or list(usual_modules)
    modules = given if earlier is None else agreed_modules(earlier, settings)
    network.requires_grad_(False)
    adapters = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=modules, init_lora_weights="gaussian"
    )
    try:
        network.add_adapter(adapters)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"learner.lora.target_modules is {modules}: {reason}") from error
    if earlier is not None:
        _copy_adapters(earlier, network)


def save_adapters(network: Any, pipeline_class: type[DiffusionPipeline], name: str, file: Path) -> None:
    """Save the LoRA of a pipeline's network in diffusers' format, under the network's `name`."""
    named = {
        f"{name}_lora_layers": get_peft_model_state_dict(network),
        f"{name}_lora_adapter_metadata": network.peft_config[ADAPTER].to_dict(),
    }
    pipeline_class.save_lora_weights(file.parent, weight_name=file.name, **named)


@torch.no_grad()
def merged(
    part: Part,
    weights: Iterable[tuple[str, Callable[[], torch.Tensor]]],
    network: torch.nn.Module,
    precision: torch.dtype,
) -> Any:
    """The network of a part with `weights` and the adapters of `network` merged into them, on the CPU."""
    layers, summed = dict(adapted_layers(network)), {}
    for name, read in weights:
        weight = read()
        summed[name] = (weight.float() + delta(layers[name]) if name in layers else weight).to(precision)
    whole = without_numbers(part)
    whole.load_state_dict(summed, strict=False, assign=True)  # all are there: the files were checked
    return whole


def agreed_modules(adapted: torch.nn.Module, settings: LoraSettings) -> list[str]:
    """The layers of a LoRA that is trained further. Raises InputError if `settings` are of another LoRA."""
    rank, alpha, modules = lora_of(adapted)
    if (rank, alpha) != (settings.rank, settings.alpha):
        raise InputError(
            f"learner.lora has rank {settings.rank} and alpha {settings.alpha:g}, and the LoRA to be trained further "
            f"rank {rank} and alpha {alpha:g}; give learner.lora.rank={rank} learner.lora.alpha={alpha:g}, or merge it"
        )
    if (given := settings.target_modules) is not None:
        raise InputError(
            f"learner.lora.target_modules is {given}, and the LoRA to be trained further has {len(modules)} layers of "
            "its own; leave it out, or merge the LoRA"
        )
    return modules


@torch.no_grad()
def _copy_adapters(adapted: torch.nn.Module, network: torch.nn.Module) -> None:
    given = {name: value for name, value in adapted.named_parameters() if f".{ADAPTER}" in name}
    for name, parameter in network.named_parameters():
        if name in given:
            parameter.copy_(given[name])
