"""Weights to start training from in place of the published ones: `policy.start_from`.

A start changes what a network is published with, weight by weight: a network that was trained before replaces its
weights, a LoRA adds to them. A LoRA that is to be trained further changes nothing, and becomes the adapters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from peft import LoraConfig, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer

from ...proto.checkpoint_files import EMA, LEARNER, WEIGHTS
from ...proto.errors import InputError
from ...proto.recipe import load_recipe
from ...proto.settings import LoraSettings, StartSettings
from .folder import Part, StoredTensor, find_parts, opened, read_headers, read_json, weight_files
from .weights import check_dtypes, check_part, compare, explain, one_line, without_numbers

LORA_STEM = "pytorch_lora_weights"
"""The beginning of the names of LoRA files, diffusers' own."""
NUMBERED = (f"{LORA_STEM}.safetensors", f"{LORA_STEM}_2.safetensors")
"""Earlier names of the LoRAs of two networks, which are still read."""
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = "default"

Adapted = Mapping[str, torch.nn.Module]
"""Network -> itself without numbers, but with a LoRA's."""


class Start:
    """Weights to start from, by network and name."""

    def __init__(self) -> None:
        self._stored: dict[str, dict[str, tuple[Path, str]]] = {}
        """Network -> name -> file and name in it, of weights that replace the published ones."""
        self._added: list[dict[str, dict[str, BaseTunerLayer]]] = []
        """Network -> name -> layer with what is added to it, of each LoRA that is merged."""
        self.adapters: Adapted | None = None
        """The LoRA that is trained further."""

    def replace(self, network: str, stored: Mapping[str, tuple[Path, str]]) -> None:
        """Start a network from stored weights: name -> file, and name in it."""
        self._stored[network] = dict(stored)

    def merge(self, adapted: Adapted) -> None:
        """Add a LoRA to the weights."""
        self._added.append({network: dict(adapted_layers(module)) for network, module in adapted.items()})

    def changed(self, network: str) -> set[str]:
        """Names of the network's weights that are not the published ones."""
        return {*self._stored.get(network, ()), *(name for lora in self._added for name in lora.get(network, ()))}

    @property
    def changes_any(self) -> bool:
        """Whether any weight isn't the published one."""
        return bool(self._stored or self._added)

    def weight(self, network: str, name: str, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A weight to start from; `read` gives the published one."""
        if place := self._stored.get(network, {}).get(name):
            with opened(place[0], "pt") as stored:
                weight: torch.Tensor = stored.get_tensor(place[1])
        else:
            weight = read()
        for lora in self._added:
            if layer := lora.get(network, {}).get(name):
                weight = weight.float() + delta(layer)
        return weight


@torch.no_grad()
def delta(layer: BaseTunerLayer) -> torch.Tensor:
    """The difference that the adapter of a layer adds to its weight, float32 on the CPU."""
    weight = layer.get_base_layer().weight
    if weight.ndim > 2:  # of PEFT's a kernel of one frame and pixel would have the wrong shape
        up, down = (own[ADAPTER].weight.float().flatten(1) for own in (layer.lora_B, layer.lora_A))
        return (layer.scaling[ADAPTER] * up @ down).reshape(weight.shape).cpu()
    change: torch.Tensor = layer.get_delta_weight(ADAPTER)
    return change.to("cpu", torch.float32)


def adapted_layers(network: torch.nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    """Weights that an adapter adds to, by the names that they have without adapters, and their layers."""
    for name, module in network.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield f"{name}.weight", module


class Starts:
    """Reads what a recipe's `policy.start_from` names, for one pipeline."""

    def __init__(
        self,
        pipeline_class: type[DiffusionPipeline],
        folder: Path,
        networks: Mapping[str, Part],
        prefixes: Mapping[str, str],
        needed_parts: Callable[[Path], Mapping[str, Any]],
    ) -> None:
        """`networks` of the pipeline in `folder`, what is before the names of each one's weights in checkpoints, and
        what loads the parts without which there is no pipeline."""
        self._needed_parts = needed_parts
        self._pipeline_class, self._folder, self._networks, self._prefixes = pipeline_class, folder, networks, prefixes

    def read(self, settings: StartSettings) -> Start:
        """Raises InputError for what isn't there, can't be read, or doesn't fit the networks."""
        try:
            return self._read(settings)
        except InputError as error:
            raise InputError(f"policy.start_from.path is '{settings.path}': {error}") from error
        except Exception as error:  # of a library, over files of whatever kind
            raise InputError(
                f"policy.start_from.path is '{settings.path}', which can't be loaded: {one_line(error)}"
            ) from error

    def _read(self, settings: StartSettings) -> Start:
        path = Path(settings.path)
        if not path.exists():
            raise InputError("it isn't there")
        start = Start()
        if is_checkpoint(path):
            recipe = load_recipe(path.parents[1] / "recipe.yaml")
            file = path / (EMA if settings.ema else WEIGHTS)
            if not file.is_file():
                raise InputError("it holds no averaged weights; leave out ema" if settings.ema else f"no {file.name}")
            if recipe.learner.lora is None:
                self._refuse_to_train(settings)
                self._replace_all(start, self._of_checkpoint(file))
                return start
            before = recipe.policy.start_from
            if before and before.lora == "merge":
                start = self.read(before)
            adapted = self._checkpoint_lora(file, recipe.learner.lora)
        elif folders := self._network_folders(path):
            self._refuse_to_train(settings)
            self._replace_all(start, self._of_folders(folders))
            return start
        else:
            adapted = self._foreign_lora(path)
        if settings.lora == "train":
            start.adapters = adapted
        else:
            start.merge(adapted)
        return start

    def _refuse_to_train(self, settings: StartSettings) -> None:
        """Raises InputError if what is no LoRA should be trained further as one."""
        if settings.lora == "train":
            raise InputError("it is no LoRA, which policy.start_from.lora 'train' needs")

    # Whole networks ---------------------------------------------------------------------------------------------

    def _network_folders(self, path: Path) -> dict[str, Path]:
        """Network -> its folder, if `path` holds folders of networks, or is one."""
        if len(self._networks) == 1 and (path / "config.json").is_file():
            return dict.fromkeys(self._networks, path)
        folders = {name: path / name for name in self._networks}
        there = [name for name, folder in folders.items() if folder.is_dir()]
        if there and len(there) < len(folders):
            raise InputError(f"it holds {there[0]}, and not all of {', '.join(folders)}, which this model has")
        return folders if there else {}

    def _of_folders(self, folders: Mapping[str, Path]) -> Iterator[tuple[str, dict[str, StoredTensor], dict[str, str]]]:
        for name, folder in folders.items():
            own, base = read_json(folder / "config.json").get("_class_name"), self._networks[name]
            if own != base.class_name:
                raise InputError(f"{folder} is a {own}, and policy.pretrained has a {base.class_name}")
            part = Part(name, "diffusers", base.class_name, folder)
            check_part(part)
            stored = read_headers(weight_files(part))
            yield name, stored, {tensor: tensor for tensor in stored}

    def _of_checkpoint(self, file: Path) -> Iterator[tuple[str, dict[str, StoredTensor], dict[str, str]]]:
        stored = read_headers([file])
        for name in self._networks:
            prefix = self._prefixes.get(name, "")
            names = {tensor.removeprefix(prefix): tensor for tensor in stored if tensor.startswith(prefix)}
            yield name, stored, names

    def _replace_all(
        self, start: Start, networks: Iterator[tuple[str, dict[str, StoredTensor], dict[str, str]]]
    ) -> None:
        """Take the weights of whole networks, whose names are keys and those in the files values."""
        for name, stored, names in networks:
            model = without_numbers(self._networks[name])
            own = {tensor: stored[there] for tensor, there in names.items()}
            check_dtypes(own)
            buffers = dict(model.named_buffers())
            expected = {**dict(model.named_parameters()), **{b: buffers[b] for b in buffers.keys() & own.keys()}}
            differences = compare(expected, {tensor: place.shape for tensor, place in own.items()})
            explain(self._networks[name].class_name, own, *differences, next(iter(stored.values())).file.parent)
            start.replace(name, {tensor: (stored[there].file, there) for tensor, there in names.items()})

    # LoRAs ------------------------------------------------------------------------------------------------------

    def _checkpoint_lora(self, file: Path, lora: LoraSettings) -> Adapted:
        weights, adapted = safetensors.torch.load_file(file), {}
        for name, part in self._networks.items():
            prefix = self._prefixes.get(name, "")
            own = {tensor.removeprefix(prefix): value for tensor, value in weights.items() if tensor.startswith(prefix)}
            own = {tensor.replace(f".{ADAPTER}.", "."): value for tensor, value in own.items()}
            adapted[name] = self._adapted(part, own, LoraConfig(r=lora.rank, lora_alpha=lora.alpha))
        return adapted

    def _foreign_lora(self, path: Path) -> Adapted:
        if path.is_file() and (path.parent / PEFT_CONFIG).is_file():
            path = path.parent
        if (path / PEFT_CONFIG).is_file():
            (name, part), *more = self._networks.items()
            if more:
                raise InputError("PEFT's folders hold the LoRA of one network, and this model has two")
            _check_lora(path / PEFT_WEIGHTS)
            weights = safetensors.torch.load_file(path / PEFT_WEIGHTS)
            own = {tensor.removeprefix("base_model.model."): value for tensor, value in weights.items()}
            return {name: self._adapted(part, own, LoraConfig.from_pretrained(str(path)))}
        names = lora_files(len(self._networks))
        if len(names) > 1 and (path / NUMBERED[1]).is_file():
            names = NUMBERED
        files = [path / name for name in names] if path.is_dir() else [path]
        if absent := [file.name for file in files if not file.is_file()]:
            raise InputError(
                f"it is no run, no LoRA, and no network of diffusers' (there is no {absent[0]}, {PEFT_CONFIG}, or "
                f"folder {' or '.join(self._networks)})"
            )
        if len(files) < len(self._networks):
            raise InputError(f"this model has two networks; name the folder with {' and '.join(names)}")
        for file in files:
            _check_lora(file)
        return {name: self._of_diffusers(name, file) for name, file in zip(self._networks, files, strict=True)}

    def _of_diffusers(self, name: str, file: Path) -> torch.nn.Module:
        """A network with the LoRA of a file in any form that diffusers reads."""
        place = {"pretrained_model_name_or_path_or_dict": str(file.parent), "weight_name": file.name}
        found = self._pipeline_class.lora_state_dict(**place)
        weights = found[0] if isinstance(found, tuple) else found
        first = next(iter(self._networks))  # by whose name a second network's LoRA goes too
        if other := [key for key in weights if not key.startswith(f"{first}.")]:
            raise InputError(f"{file} has '{other[0]}'{_more(other)}: what is trained is {first} alone")
        model = hollow(self._networks[name])
        parts: dict[str, Any] = dict.fromkeys(part for part in find_parts(self._folder) if part != "scheduler")
        parts |= self._needed_parts(self._folder)
        pipeline = self._pipeline_class.from_pretrained(self._folder, **{**parts, first: model}, local_files_only=True)
        try:
            with _quiet():
                pipeline.load_lora_weights(**place, adapter_name=ADAPTER)
        except Exception as error:
            _explain_misfit(file, model, self._networks[name], [key.removeprefix(f"{first}.") for key in weights])
            raise InputError(
                f"{file} can't be loaded into a {self._networks[name].class_name}: {one_line(error)}"
            ) from error
        own = [key for key, _ in model.named_parameters() if f".{ADAPTER}" in key]
        if len(own) != len([key for key in weights if not key.endswith("alpha")]):
            _explain_misfit(file, model, self._networks[name], [key.removeprefix(f"{first}.") for key in weights])
            raise InputError(f"{file} holds more than a LoRA of a {self._networks[name].class_name}")
        return _in_float32(model)

    def _adapted(self, part: Part, weights: Mapping[str, torch.Tensor], config: LoraConfig) -> torch.nn.Module:
        """A network with a LoRA whose weights go by PEFT's names."""
        model = hollow(part)
        modules = sorted({_module(name) for name in weights})
        _explain_misfit(part.folder, model, part, weights)
        config.target_modules = modules
        model.add_adapter(config, adapter_name=ADAPTER)
        told = set_peft_model_state_dict(model, dict(weights), adapter_name=ADAPTER)
        if odd := [*told.unexpected_keys, *(name for name in told.missing_keys if f".{ADAPTER}." in name)]:
            raise InputError(f"its '{odd[0]}' doesn't fit a {part.class_name}{_more(odd)}")
        return _in_float32(model)


def lora_files(networks: int) -> tuple[str, ...]:
    """Names of the LoRA files of a model: diffusers' own, or by the noise levels of Wan 2.2's two networks."""
    ends = ("",) if networks == 1 else ("_high_noise", "_low_noise")
    return tuple(f"{LORA_STEM}{end}.safetensors" for end in ends)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint of a run."""
    return (path / LEARNER).is_file()


def hollow(part: Part) -> Any:
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


def lora_of(adapted: torch.nn.Module) -> tuple[int, float, list[str]]:
    """Rank and alpha of a LoRA, and its layers. Raises InputError if they differ from layer to layer."""
    layers = {name.removesuffix(".weight"): layer for name, layer in adapted_layers(adapted)}
    pairs = {(layer.r[ADAPTER], layer.scaling[ADAPTER] * layer.r[ADAPTER]) for layer in layers.values()}
    if len(pairs) > 1:
        raise InputError(f"its layers have ranks and alphas {sorted(pairs)}: it can only be merged (lora: merge)")
    ((rank, alpha),) = pairs
    return rank, alpha, sorted(layers)


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
