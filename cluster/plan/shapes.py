"""The networks of a run as shapes without numbers, on the meta device: of files, only configurations are read."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from ...proto.errors import InputError
from ...proto.pictures import Picture
from ...proto.prompt import Prompt
from ...proto.prompts import first_prompt
from ...proto.settings import PromptSettings, RunSettings
from ...proto.tree import Conditioning
from ...rollout_workers.policies.attention import choose_attention
from ...rollout_workers.policies.base import Weights, trainable
from ...rollout_workers.policies.folder import Part
from ...rollout_workers.policies.load import FAMILIES, find_adapter, find_policy
from ...rollout_workers.policies.pipeline import PipelinePolicy
from ...rollout_workers.policies.prompt_encoding import NEGATIVE
from ...rollout_workers.policies.weights import one_line, without_numbers
from .meter import metered


def policy_shapes(settings: RunSettings) -> PipelinePolicy:
    """The policy as the learner trains it and the rollout calls it, with shapes in place of numbers, on the CPU by its
    own account.

    Files of weights needn't be there. Raises InputError as the policy itself would, and for one that is over no
    diffusers pipeline.
    """
    here = settings.policy.model_copy(update={"device": "cpu", "compile": False})
    folder, name = find_policy(here)
    family: Any = find_adapter(name)
    if not issubclass(family, PipelinePolicy):
        raise InputError(f"policy.adapter is '{name}', no PipelinePolicy: what its network takes can't be counted")
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    precision = getattr(torch, here.precision)

    def shapes(make: Callable[[], torch.nn.Module], weights: Weights) -> torch.nn.Module:
        with torch.device("meta"):
            return _cast(make(), precision)

    unchecked = type(family)(family.__name__, (_WithoutFiles, family), {})
    policy: PipelinePolicy = unchecked(folder, here, torch.device("cpu"), network_only=True, build=shapes)
    for part in family.find_parts(folder, here.variant).values():
        if part.name in family.networks:
            if here.attention != "_native_math":  # all fused kernels take as much
                choose_attention(getattr(policy.pipeline, part.name), "native")
        elif part.has_weights:
            module = _module(part)
            own = torch.float32 if part.name in family.float32_parts else precision
            policy.pipeline.register_modules(**{part.name: _cast(module, own).eval().requires_grad_(False)})
    if settings.learner.lora:
        with torch.device("meta"):
            policy.add_lora(settings.learner.lora)
        for weight in trainable(policy.network).values():  # on other devices PEFT takes the network's own
            weight.data = weight.data.to(precision)
    if settings.learner.gradient_checkpointing:
        policy.checkpoint_gradients()
    return policy


@torch.no_grad()
def conditioning_shapes(policy: PipelinePolicy, pictures: int = 0) -> Conditioning:
    """The conditioning on a prompt that fills `policy.max_sequence_length`, with the pictures of `needed_prompt`, and
    with guidance on the negative prompt."""
    prompt = needed_prompt(policy, "a " * policy.settings.max_sequence_length, pictures)
    with metered(), _quiet():  # libraries warn of what they cut
        one = policy.embed(prompt)
        shown = policy.embed_pictures(policy.pictures_of(prompt)) if prompt.pictures else {}
    return {**one, **shown, **({NEGATIVE + name: value for name, value in one.items()} if policy.guided else {})}


def pictures_per_prompt(prompts: PromptSettings) -> int:
    """The number of pictures that every prompt comes with; 1 for prompts that can't be read yet."""
    if prompts.picture_column is None:
        return 0
    try:
        return len(first_prompt(prompts).pictures)
    except InputError:
        return 1


def needed_prompt(policy: object, text: str, pictures: int = 0) -> Prompt:
    """A prompt with so many black pictures, or as few or many as a model takes; without any for a user's adapter."""
    if not isinstance(policy, PipelinePolicy):
        return Prompt(text)
    family = FAMILIES.get(policy.pipeline_class.__name__)
    black = Picture("black", np.zeros((*policy.picture_size, 3), np.uint8))
    allowed = family.pictures if family else range(1)
    return Prompt(text, pictures=[black] * min(max(pictures, allowed.start), allowed.stop - 1))


def _module(part: Part) -> Any:
    """An autoencoder or a text encoder."""
    try:
        if part.library == "diffusers":
            return without_numbers(part)
        kind = getattr(transformers, part.class_name)
        with torch.device("meta"):
            return kind(kind.config_class.from_pretrained(part.folder, local_files_only=True))
    except Exception as error:  # of a library, over a configuration that it doesn't understand
        raise InputError(f"{part.folder / 'config.json'} makes no {part.class_name}: {one_line(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    loggings = diffusers.utils.logging, transformers.utils.logging
    levels = [logging.get_verbosity() for logging in loggings]
    for logging in loggings:
        logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logging, level in zip(loggings, levels, strict=True):
            logging.set_verbosity(level)


class _WithoutFiles:
    """A policy that may lack its files of weights."""

    def check_parts(self, parts: Sequence[Any]) -> None:
        """Accept any parts: nothing is read from them."""


def _cast(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A module with all parameters in `dtype`, as policies have them."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module
