"""Files of the oldest iterations go first, whole iterations at a time, and the newest iteration's never."""

from pathlib import Path

import pytest
from branchgrpo.cluster.run.oldest_files import drop_oldest


@pytest.mark.parametrize(
    ("kilobytes", "kept"),
    [(80, [1, 5, 10, 15]), (79, [5, 10, 15]), (60, [5, 10, 15]), (50, [10, 15]), (0.001, [15])],
)
def test_the_oldest_are_dropped_and_never_the_newest(tmp_path: Path, kilobytes: float, kept: list[int]) -> None:
    files = [(iteration, tmp_path / f"{iteration}-{part}") for part in "ab" for iteration in (10, 5, 15, 1)]
    for _, path in files:
        path.write_bytes(b"." * 10_000)
    drop_oldest(files, kilobytes / 1000)
    assert set(tmp_path.iterdir()) == {path for iteration, path in files if iteration in kept}


def test_nothing_is_dropped_of_nothing() -> None:
    drop_oldest([], 1)
