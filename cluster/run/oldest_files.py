"""Keeps what a run has drawn of its iterations within a size."""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path


def drop_oldest(files: Iterable[tuple[int, Path]], max_megabytes: float) -> None:
    """Remove the files of the oldest iterations until all fit; those of the newest stay.

    `files` are the iteration and path of each, in any order.
    """
    by_iteration = [list(own) for _, own in groupby(sorted(files), key=lambda file: file[0])]
    sizes = [sum(path.stat().st_size for _, path in own) for own in by_iteration]
    total = sum(sizes)
    for own, size in zip(by_iteration[:-1], sizes, strict=False):
        if total <= max_megabytes * 1e6:
            break
        for _, path in own:
            path.unlink()
        total -= size
