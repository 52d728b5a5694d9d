"""Benchmarks replace their own reports and nothing else."""

from pathlib import Path

import pytest
import typer
from branchgrpo.benchmarks.support.report import report_path, write_report


def test_a_report_replaces_its_own_earlier_one_alone(tmp_path: Path) -> None:
    (tmp_path / "start.png").touch()
    with pytest.raises(typer.BadParameter, match=r"start.png exists and isn't this benchmark's"):
        report_path(tmp_path, "start", "start.png")
    path = report_path(tmp_path, "start")
    write_report(path, {"seconds": 1})
    assert report_path(tmp_path, "start", "start.png") == path
    for content in ("mine", "[]", '{"benchmark": "methods"}'):
        path.write_text(content)
        with pytest.raises(typer.BadParameter, match=r"start.json exists and isn't this benchmark's"):
            report_path(tmp_path, "start")
