"""Calls to processes of a run. Their exceptions are raised as they were raised there."""

from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError

from ...proto.errors import ProcessLost
from .connect import named_controller, visiting
from .reward_client import cause_of
from .run_address import RunAddress

Result = TypeVar("Result")
LOSSES = (RayActorError, ObjectLostError)
"""Ray's exceptions when a process died, or its node with all its objects."""
BROKEN_LINK = "gloo/transport"
"""Part of the message that gloo raises in a rank when another one has died; it may come before Ray's exception."""


def call_controller(where: RunAddress, call: Callable[[Any], Any]) -> Any:
    """The result of `call` with a run's controller. Raises InputError if the run has none there."""
    with visiting(where.address):
        controller = named_controller(where.run)
        return unwrapped(lambda: ray.get(call(controller)))


def unwrapped(call: Callable[[], Result]) -> Result:
    """The result of `call`. An exception of another process is raised as it was raised there.

    Raises ProcessLost for a process that died, or what it held.
    """
    try:
        return call()
    except RayError as error:
        cause = cause_of(error)
        if isinstance(cause, LOSSES) or BROKEN_LINK in str(cause):
            facts = str(cause).split("The actor is dead because")[0]
            raise ProcessLost(f"a process of the run was lost: {' '.join(facts.split())[:300]}") from error
        raise cause from error
