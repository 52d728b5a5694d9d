"""Which work of a run is profiled, and what must hold for it, whatever executes the run."""

import uuid
from pathlib import Path

from ...proto.atomic_files import PARTIAL_PREFIX
from ...proto.errors import InputError
from ...proto.profiling import Component, ProfileOrder
from ...proto.settings import RunSettings

ENDED = "the run ended, or restarted after a fault, before the iterations were over"


class Profiling:
    """The order that a run is at work on, if there is one."""

    current: ProfileOrder | None = None

    def order(self, component: Component, iteration: int, *, first: bool = True) -> ProfileOrder | None:
        """The order for work of a process on an iteration; None if it isn't to be profiled.

        `first`: whether the process is the one that is profiled where one of its kind is enough.
        """
        order = self.current
        wanted = order and component in order.components and order.first <= iteration <= order.last
        return order.of(component) if order and wanted and (first or order.everyone) else None


def new_name() -> str:
    """A name for a folder of traces. What of it is left when a run continues is swept away."""
    return f"{PARTIAL_PREFIX}profile-{uuid.uuid4().hex[:8]}"


def folder_of_spans(settings: RunSettings) -> Path:
    """The folder of a run's spans. Raises InputError if it writes none."""
    if settings.trace_folder is None:
        raise InputError("this run writes no spans (logging.trace is false), which operations are shown with")
    return settings.trace_folder


def must_go_on(begun: int, iterations: int) -> None:
    """Raises InputError if `begun`, the newest iteration that has begun, is the last."""
    if begun >= iterations:
        raise InputError(f"iteration {begun} of {iterations} has begun; there is none left to profile")
