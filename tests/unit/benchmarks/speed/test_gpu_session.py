"""The benchmarks of a GPU one after the other, within a limit of time."""

import json
import sys
from pathlib import Path

from branchgrpo.benchmarks.speed.gpu_session import left


def test_a_later_call_does_what_an_earlier_one_has_left(tmp_path: Path) -> None:
    report, told = tmp_path / "gpu_session.json", tmp_path / "told"

    def step(name: str) -> list[str]:
        return [sys.executable, "-c", f"open({str(told)!r}, 'a').write({name + ' '!r})"]

    steps = {"one": step("one"), "fails": ["false"]}
    assert list(left(steps, report, 0)) == ["one", "fails"]
    assert list(left(steps, report, 300)) == ["fails (failed with 1)"]
    assert json.loads(report.read_text())["done"] == ["one"]
    steps = {**steps, "fails": step("two"), "three": step("three")}
    assert not list(left(steps, report, 300))
    assert told.read_text() == "one two three "
