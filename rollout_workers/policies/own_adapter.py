"""Adapters of the user's own: what they raise is told with its place."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from ...proto.errors import InputError, RunFailed
from ...proto.files import is_full
from ...proto.user_code import described
from .base import Policy


def told_with_its_place(name: str, adapter: type) -> type:
    """The class `adapter`, whose constructor and whatever it does as a Policy raise RunFailed for any exception, with
    the line and traceback of the user's code. InputError, RunFailed and a full disk stay what they are."""

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def told(*arguments: Any, **named: Any) -> Any:
            try:
                return call(*arguments, **named)
            except Exception as error:
                if isinstance(error, (InputError, RunFailed)) or is_full(error):
                    raise
                raise RunFailed(f"policy.adapter '{name}' raised {described(error)}") from error

        return told

    own: dict[str, Any] = {"__module__": adapter.__module__, "__qualname__": adapter.__qualname__}
    for member in ("__init__", "cut_prompts", *(member for member in vars(Policy) if not member.startswith("_"))):
        value = inspect.getattr_static(adapter, member, None)
        if inspect.isfunction(value):
            own[member] = guarded(value)
        elif isinstance(value, property) and value.fget:
            own[member] = property(guarded(value.fget), value.fset, value.fdel)
    return type(adapter)(adapter.__name__, (adapter,), own)
