"""The results in the repository are those that `--report` writes from the runs beside them."""

import tarfile
from pathlib import Path

import pytest
from branchgrpo.cluster.study.file import load_study
from branchgrpo.cluster.study.report import write_report
from support import ROOT

STUDIES = ROOT / "studies"


@pytest.mark.parametrize("name", [folder.name for folder in sorted((STUDIES / "results").iterdir())])
def test_shipped_results_are_those_of_their_runs(name: str, tmp_path: Path) -> None:
    shipped = STUDIES / "results" / name
    with tarfile.open(shipped / "runs.tar.xz") as runs:
        runs.extractall(tmp_path, filter="data")
    written = write_report(load_study(STUDIES / f"{name}.yaml", tmp_path)).path
    assert written.read_text() == (shipped / "report.md").read_text()
    for table in shipped.glob("*.csv"):
        assert (written.parent / table.name).read_text() == table.read_text(), table.name
