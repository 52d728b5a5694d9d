"""Resizing the pools of a run in progress."""

from collections.abc import Sequence

from pydantic import TypeAdapter

from ...proto.errors import InputError
from ...proto.settings import MAX_PROCESSES, Processes
from ..on_ray.run_address import RunAddress

COUNT = TypeAdapter(Processes)


def replica_counts(options: Sequence[str]) -> dict[str, int]:
    """Reward -> number of replicas, from `ocr=2`. Raises InputError for anything else."""
    counts = {}
    for option in options:
        name, _, count = option.partition("=")
        try:
            counts[name] = COUNT.validate_python(count)
        except ValueError:
            raise InputError(
                f"--reward is '{option[:100]}'; write name=count, such as ocr=2, with a count from 1 to {MAX_PROCESSES}"
            ) from None
    return counts


def scale(where: RunAddress, workers: int | None, replicas: dict[str, int]) -> int:
    """Give a run so many rollout workers, and so many replicas of each named reward; returns how many processes
    have no room yet. Raises InputError for a run that isn't there, or sizes that its pools can't have."""
    if workers is None and not replicas:
        raise InputError("nothing to change; give --rollout-workers or --reward")
    address = where.found()
    from ..on_ray.calls import call_controller  # Ray reads its way of authentication when it is imported

    return int(call_controller(address, lambda controller: controller.scale.remote(workers, replicas)))
