"""The sizes of a run that begins, or continues, in place of `auto`."""

from pathlib import Path

from ..proto.settings import RunSettings


def with_sizes(settings: RunSettings, before: Path | None, address: str | None) -> RunSettings:
    """The settings with the numbers of the run that continues in the folder `before`, or with numbers for the device
    that a new one will have: that of the Ray cluster at `address`, or of this machine.

    Raises InputError as `choose_sizes` does, and for a device of which nothing is known.
    """
    if not settings.automatic:
        return settings
    from .plan.device import device_here
    from .plan.sizes import choose_sizes, same_sizes

    if before:
        return same_sizes(settings, before)
    if settings.execution == "ray":
        from .on_ray.address import find_cluster

        if cluster := find_cluster(address):  # before Ray is imported
            from .on_ray.devices import device_of_cluster

            return choose_sizes(settings, device_of_cluster(settings, cluster))
    return choose_sizes(settings, device_here(settings))
