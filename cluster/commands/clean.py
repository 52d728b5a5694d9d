"""Leftovers of runs whose driver was killed: found, listed and removed.

On a cluster that is their reward models; these end by themselves after a minute, unless they never began. In run
folders it is the record of the run's address.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray
from ray import serve

from ...proto.errors import InputError
from ..on_ray.names import controller_of, given_name, service_name
from ..on_ray.run_address import FILE
from ..run.driver_lock import driver_of

LOOK_SECONDS = 3
"""A run that is being set up again has no controller for a moment."""


@dataclass(frozen=True)
class Leftover:
    """Something that can be removed."""

    what: str
    remove: Callable[[], object]


def orphans() -> list[Leftover]:
    """The reward models, on the cluster that this process is connected to, whose run or service is gone."""
    found = _orphans()
    if found:
        time.sleep(LOOK_SECONDS)
        found &= _orphans()
    return [Leftover(f"reward models of '{given_name(name)}'", partial(_delete, name)) for name in sorted(found)]


def stale_notes(runs: Path) -> list[Leftover]:
    """The notes in folders of `runs` whose driver is gone."""
    return [
        Leftover(str(note), lambda note=note: note.unlink(missing_ok=True))  # type: ignore[misc]
        for note in sorted(runs.glob(f"*/{FILE}"))
        if (driver := driver_of(note.parent)) is None or not driver.alive
    ]


def _orphans() -> set[str]:
    owners = set(ray.util.list_named_actors())
    return {name for name in serve.status().applications if (owner := _owner(name)) and owner not in owners}


def _owner(application: str) -> str | None:
    """Name of the actor that lives as long as the one that an application was started for; None if it isn't ours."""
    return application if application.startswith(service_name("")) else controller_of(application)


def _delete(application: str) -> None:
    """Raises InputError if it doesn't end."""
    try:
        serve.delete(application)
    except TimeoutError as error:
        raise InputError(
            f"the reward models of '{given_name(application)}' don't end; look at the cluster's nodes"
        ) from error
