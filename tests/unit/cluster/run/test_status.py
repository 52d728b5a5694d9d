"""The status of runs whose files hold what no run has written."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.commands.status import look_at_all
from branchgrpo.cluster.commands.status_tables import show, show_all
from rich.console import Console
from run_folders import line, write_run


@pytest.mark.parametrize("file", ["metrics", "evaluations"])
@pytest.mark.parametrize("odd", [{"rewards": None}, {"rewards": {"ocr": {"mean": "x"}}}, {"seconds": "x"}, {"ocr": []}])
def test_an_odd_line_hides_no_other_run(file: str, odd: dict[str, Any], tmp_path: Path) -> None:
    """Other versions and people write files too."""
    for name in ("one", "two"):
        write_run(tmp_path / name)
    with (tmp_path / "two" / f"{file}.jsonl").open("a") as lines:
        lines.write(json.dumps(line(3, ocr=0.5) | odd) + "\n")
    found = look_at_all(tmp_path)
    shown = io.StringIO()
    console = Console(file=shown, width=200)
    show_all(found, console)
    assert shown.getvalue().count("3 of 3") == 2
    for run in found:
        show(run, console)
