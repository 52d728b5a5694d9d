"""LoRAs to start training from, in the forms of this project's checkpoints, PEFT's folders and diffusers' files."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from peft import LoraConfig, set_peft_model_state_dict

from ...proto.errors import InputError
from ...proto.settings import LoraSettings
from .folder import Part, find_parts, read_headers
from .start import ADAPTER, LORA_STEM, Adapted, lora_files
from .weights import one_line, without_numbers

NUMBERED = (f"{LORA_STEM}.safetensors", f"{LORA_STEM}_2.safetensors")
"""Earlier names of the LoRAs of two networks, which are still read."""
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Published:
    """The pipeline whose networks start from other weights."""

    pipeline_class: type[DiffusionPipeline]
    folder: Path
    networks: Mapping[str, Part]
    """Those that are trained."""
    prefixes: Mapping[str, str]
    """What is before the names of each network's weights in checkpoints."""
    needed_parts: Callable[[Path], Mapping[str, Any]]
    """Loads the parts without which there is no pipeline."""


def checkpoint_lora(published: Published, file: Path, lora: LoraSettings) -> Adapted:
    """The networks with the LoRA of a checkpoint."""
    weights, adapted = safetensors.torch.load_file(file), {}
    for name, part in published.networks.items():
        prefix = published.prefixes.get(name, "")
        own = {tensor.removeprefix(prefix): value for tensor, value in weights.items() if tensor.startswith(prefix)}
        own = {tensor.replace(f".{ADAPTER}.", "."): value for tensor, value in own.items()}
        adapted[name] = _adapted(part, own, LoraConfig(r=lora.rank, lora_alpha=lora.alpha))
    return adapted


def foreign_lora(published: Published, path: Path) -> Adapted:
    """The networks with a LoRA from elsewhere. Raises InputError if there is none, or if it doesn't fit."""
    if path.is_file() and (path.parent / PEFT_CONFIG).is_file():
        path = path.parent
    if (path / PEFT_CONFIG).is_file():
        (name, part), *more = published.networks.items()
        if more:
            raise InputError("PEFT's folders hold the LoRA of one network, and this model has two")
        _check_lora(path / PEFT_WEIGHTS)
        weights = safetensors.torch.load_file(path / PEFT_WEIGHTS)
        own = {tensor.removeprefix("base_model.model."): value for tensor, value in weights.items()}
        return {name: _adapted(part, own, LoraConfig.from_pretrained(str(path)))}
    names = lora_files(len(published.networks))
    if len(names) > 1 and (path / NUMBERED[1]).is_file():
        names = NUMBERED
    files = [path / name for name in names] if path.is_dir() else [path]
    if absent := [file.name for file in files if not file.is_file()]:
        raise InputError(
            f"it is no run, no LoRA, and no network of diffusers' (there is no {absent[0]}, {PEFT_CONFIG}, or "
            f"folder {' or '.join(published.networks)})"
        )
    if len(files) < len(published.networks):
        raise InputError(f"this model has two networks; name the folder with {' and '.join(names)}")
    for file in files:
        _check_lora(file)
    return {name: _of_diffusers(published, name, file) for name, file in zip(published.networks, files, strict=True)}


def _of_diffusers(published: Published, name: str, file: Path) -> torch.nn.Module:
    """A network with the LoRA of a file in any form that diffusers reads."""
    place = {"pretrained_model_name_or_path_or_dict": str(file.parent), "weight_name": file.name}
    found = published.pipeline_class.lora_state_dict(**place)
    weights = found[0] if isinstance(found, tuple) else found
    first = next(iter(published.networks))  # by whose name a second network's LoRA goes too
    if other := [key for key in weights if not key.startswith(f"{first}.")]:
        raise InputError(f"{file} has '{other[0]}'{_more(other)}: what is trained is {first} alone")
    model = _hollow(published.networks[name])
    parts: dict[str, Any] = dict.fromkeys(part for part in find_parts(published.folder) if part != "scheduler")
    parts |= published.needed_parts(published.folder)
    pipeline = published.pipeline_class.from_pretrained(
        published.folder, **{**parts, first: model}, local_files_only=True
    )
    try:
        with _quiet():
            pipeline.load_lora_weights(**place, adapter_name=ADAPTER)
    except Exception as error:
        _explain_misfit(file, model, published.networks[name], [key.removeprefix(f"{first}.") for key in weights])
        raise InputError(
            f"{file} can't be loaded into a {published.networks[name].class_name}: {one_line(error)}"
        ) from error
    own = [key for key, _ in model.named_parameters() if f".{ADAPTER}" in key]
    if len(own) != len([key for key in weights if not key.endswith("alpha")]):
        _explain_misfit(file, model, published.networks[name], [key.removeprefix(f"{first}.") for key in weights])
        raise InputError(f"{file} holds more than a LoRA of a {published.networks[name].class_name}")
    return _in_float32(model)


def _adapted(part: Part, weights: Mapping[str, torch.Tensor], config: LoraConfig) -> torch.nn.Module:
    """A network with a LoRA whose weights go by PEFT's names."""
    model = _hollow(part)
    modules = sorted({_module(name) for name in weights})
    _explain_misfit(part.folder, model, part, weights)
    config.target_modules = modules
    model.add_adapter(config, adapter_name=ADAPTER)
    told = set_peft_model_state_dict(model, dict(weights), adapter_name=ADAPTER)
    if odd := [*told.unexpected_keys, *(name for name in told.missing_keys if f".{ADAPTER}." in name)]:
        raise InputError(f"its '{odd[0]}' doesn't fit a {part.class_name}{_more(odd)}")
    return _in_float32(model)


def _hollow(part: Part) -> Any:
    """A network whose weights have their shapes and take no memory; adapters that are put on it are real."""
    model = without_numbers(part)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.zeros(1).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))
    return model


def _in_float32(adapted: torch.nn.Module) -> torch.nn.Module:
    for name, parameter in adapted.named_parameters():
        if f".{ADAPTER}" in name:
            parameter.data = parameter.data.float()
    return adapted


def _check_lora(file: Path) -> None:
    """Raises InputError for a file that holds no LoRA, or one that is more than a LoRA."""
    names = read_headers([file])
    if odd := [name for name in names if re.search(r"dora_scale|lora_magnitude_vector|lora_B\.bias", name)]:
        raise InputError(f"{file} holds '{odd[0]}'{_more(odd)}: a DoRA or a LoRA with biases, which isn't known")
    if not any(re.search(r"lora|lokr|\.alpha$", name) for name in names):
        raise InputError(f"{file} holds no LoRA: its first name is '{next(iter(names), '')}'")


def _explain_misfit(file: Path, model: torch.nn.Module, part: Part, names: Sequence[str] | Mapping[str, Any]) -> None:
    """Raises InputError if layers of a LoRA are none of the model's."""
    there = {name for name, _ in model.named_modules()}
    if foreign := sorted({module for name in names if (module := _module(name)) not in there}):
        raise InputError(
            f"it is a LoRA of another architecture: it has '{foreign[0]}'{_more(foreign)}, which this "
            f"{part.class_name} hasn't"
        )


def _module(name: str) -> str:
    """The layer that a weight of a LoRA belongs to."""
    return re.split(r"\.(?:lora|lokr|alpha)", name)[0]


def _more(names: Sequence[object]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block diffusers doesn't warn of parts for which a LoRA has nothing."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
