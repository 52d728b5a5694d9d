"""The user's adapters: their exceptions and wrong results are reported with file and line."""

import functools
import inspect
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...proto.atomic_files import is_full
from ...proto.errors import InputError, RunFailed
from ...proto.user_code import described
from .base import Policy
from .decoded import Decoded

OPTIONAL = ("cut_prompts", "with_guidance")
"""Optional attributes of an adapter, besides those of a Policy."""


def told_with_its_place(name: str, adapter: type) -> type:
    """The class `adapter`, whose constructor and whatever it does as a Policy raise RunFailed for any exception, with
    the line and traceback of the user's code, and for what they return if it isn't what a Policy's do. InputError,
    RunFailed and a full disk stay what they are."""

    def guarded(label: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def told(*arguments: Any, **named: Any) -> Any:
            try:
                returned = call(*arguments, **named)
            except Exception as error:
                if isinstance(error, (InputError, RunFailed)) or is_full(error):
                    raise
                raise RunFailed(f"policy.adapter '{name}' raised {described(error)}") from error
            given = next(iter([*arguments[1:], *named.values()]), None)
            member, verb, value = label, "returned", returned
            if label == "__init__":
                member, verb, value = "network", "is", getattr(arguments[0], "network", None)
            fits, wanted = RETURNS.get(member, (None, ""))
            if fits and not fits(value, given):
                code = inspect.unwrap(call).__code__
                to = f" for {_shown(given)}" if member in ("sigmas", "velocity", "decode") else ""
                raise RunFailed(
                    f"policy.adapter '{name}': {adapter.__qualname__}.{member} {verb} {_shown(value)}{to}; it must be "
                    f"{wanted} ({code.co_filename}, line {code.co_firstlineno})"
                )
            return returned

        return told

    own: dict[str, Any] = {"__module__": adapter.__module__, "__qualname__": adapter.__qualname__}
    for member in ("__init__", *OPTIONAL, *(member for member in vars(Policy) if not member.startswith("_"))):
        value = inspect.getattr_static(adapter, member, None)
        if inspect.isfunction(value):
            own[member] = guarded(member, value)
        elif isinstance(value, property) and value.fget:
            own[member] = property(guarded(member, value.fget), value.fset, value.fdel)
    return type(adapter)(adapter.__name__, (adapter,), own)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _are_numbers(values: Any, count: int) -> bool:
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        return False
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], torch.Tensor)


def _is_real(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _are_media(value: Any, rows: int) -> bool:
    if isinstance(value, Decoded):
        pictures, sound = value.pictures, value.sound
        heard = sound is None or (_is_real(sound) and sound.dim() == 3 and len(sound) == rows)
        return heard and (pictures is None or _are_media(pictures, rows)) and bool(value.tensors())
    return _is_real(value) and value.dim() in (4, 5) and (len(value), value.shape[-1]) == (rows, 3)


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype}, {list(value.shape)}"
    if value is None or isinstance(value, (str, int, float)):
        return reprlib.repr(value)
    return f"a {type(value).__name__}, {reprlib.repr(value)}"


RETURNS: Mapping[str, tuple[Callable[[Any, Any], bool], str]] = {
    "network": (lambda value, given: isinstance(value, torch.nn.Module), "a torch.nn.Module"),
    "device": (lambda value, given: isinstance(value, torch.device), "a torch.device"),
    "latent_shape": (
        lambda value, given: isinstance(value, tuple) and bool(value) and all(map(_is_size, value)),
        "a tuple of positive integers",
    ),
    "sigmas": (lambda value, given: _are_numbers(value, given + 1), "a list of one finite number more than steps"),
    "encoding": (
        lambda value, given: isinstance(value, str) and bool(value) and "/" not in value,
        "a text that can name a file",
    ),
    "encode": (
        lambda value, given: isinstance(value, Mapping) and all(map(_is_named_tensor, value.items())),
        "a dict of tensors by name",
    ),
    "velocity": (
        lambda value, given: _is_real(value) and value.shape == given.shape,
        "floating-point numbers in the shape of the latents",
    ),
    "decode": (
        lambda value, given: _are_media(value, len(given)),
        "floating-point numbers, [rows, height, width, 3] or [rows, frames, height, width, 3], or a Decoded",
    ),
    "save": (lambda value, given: isinstance(value, Path), "a Path"),
    "cut_prompts": (
        lambda value, given: isinstance(value, list) and all(isinstance(prompt, str) for prompt in value),
        "a list of texts",
    ),
    "with_guidance": (lambda value, given: hasattr(value, "velocity"), "a policy"),
}
"""What a policy has or returns -> whether a value is that, given what it was called with; and what it must be."""
