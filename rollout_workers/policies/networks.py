"""The trained networks of a diffusers pipeline: read from its files, given adapters, saved."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import DiffusionPipeline

from ...proto.errors import InputError
from ...proto.settings import LoraSettings, PolicySettings
from .base import Builder
from .folder import INDEX, Part, find_parts, opened, weight_files
from .lora import add_adapters, merged, save_adapters
from .start import Start, lora_files

JOINT_ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
"""Layers of blocks in which a state and a prompt have layers of their own."""


class Networks:
    """The trained networks of a pipeline, and what training starts from. A family says which they are."""

    pipeline_class: ClassVar[type[DiffusionPipeline]]
    networks: ClassVar[tuple[str, ...]] = ("transformer",)
    """The pipeline's parts that are trained."""
    lora_modules: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """Layers that get an adapter if the recipe names none."""
    checkpoint_prefixes: ClassVar[dict[str, str]] = {}
    """Prefixes of the names of each network's weights in a checkpoint, if there is more than one network."""
    absent: ClassVar[dict[str, Any]] = {}
    """Replacements for unused parts when the pipeline is loaded."""
    pipeline: Any
    folder: Path
    settings: PolicySettings
    precision: Any
    start: Start

    @classmethod
    def find_parts(cls, folder: Path, variant: str | None) -> dict[str, Part]:
        """The parts of the pipeline in `folder` that a policy uses, by name, with weights of the variant.

        Raises InputError as `find_parts` does, or if the index names no network, autoencoder or scheduler.
        """
        parts = {name: part for name, part in find_parts(folder, variant).items() if part and name not in cls.absent}
        for name in (cls.networks[0], "vae", "scheduler"):
            if name not in parts:
                raise InputError(f"policy.pretrained is '{folder}', whose {INDEX} names no {name}")
        return parts

    def find_network(self) -> torch.nn.Module:
        """The loaded network."""
        return getattr(self.pipeline, self.networks[0])

    @property
    def loaded_networks(self) -> dict[str, Any]:
        """The trained parts, by the pipeline's names."""
        return {name: part for name in self.networks if (part := getattr(self.pipeline, name)) is not None}

    def build_network(self, part: Part, build: Builder) -> torch.nn.Module:
        """A network that `build` makes, with the weights to start from."""
        network_class = getattr(diffusers, part.class_name)
        config = network_class.load_config(part.folder, local_files_only=True)
        return build(lambda: network_class.from_config(config), self.starting_weights(part))

    def starting_weights(self, part: Part) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
        """The weights of a network to start from."""
        for file in weight_files(part):
            with opened(file, "pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - no mapping
                    published = partial(stored.get_tensor, name)
                    yield name, partial(self.start.weight, part.name, name, published)

    @torch.no_grad()
    def take_up_start(self, networks: Mapping[str, Part]) -> None:
        """Put what training starts from in place of the published weights, as a `Builder` does: from the files."""
        for name, part in networks.items():
            if changed := self.start.changed(name):
                weights = getattr(self.pipeline, name).state_dict()
                for own, read in self.starting_weights(part):
                    if own in changed:
                        weights[own].copy_(read())

    def checkpoint_gradients(self) -> None:
        """Have the networks recompute activations in the backward pass."""
        for network in self.loaded_networks.values():
            network.enable_gradient_checkpointing()

    def add_lora(self, settings: LoraSettings) -> None:
        """Freeze the networks and give each its adapters. Raises InputError as `add_adapters` does."""
        for name, network in self.loaded_networks.items():
            add_adapters(network, settings, self.lora_modules, (self.start.adapters or {}).get(name))

    def save(self, folder: Path, *, merge: bool = False) -> Path:
        """Save the networks or LoRAs in a folder, and return the path as every policy does.

        A LoRA is merged into the weights with `merge`. It always is if diffusers couldn't load it, or if the weights
        below it aren't the published ones (`start_from`): without them it would be of no use.
        """
        paths, parts = [], self.find_parts(self.folder, self.settings.variant)
        files = [folder / file for file in lora_files(len(self.loaded_networks))]
        for (name, network), file in zip(self.loaded_networks.items(), files, strict=True):
            adapted = getattr(network, "peft_config", None)
            if adapted and (merge or self.start.changes_any or not hasattr(self.pipeline_class, "save_lora_weights")):
                # The weights below are read from disk: ranks that share them (ZeRO 3) don't hold them.
                network = merged(parts[name], self.starting_weights(parts[name]), network, self.precision)
            elif adapted:
                # The second network's adapters go by the first one's name: diffusers loads them into either.
                save_adapters(network, self.pipeline_class, self.networks[0], file)
                paths.append(file)
                continue
            network.save_pretrained(folder / name, safe_serialization=True)
            paths.append(folder / name)
        return paths[0] if len(paths) == 1 else folder
