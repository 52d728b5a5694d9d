"""The results in the repository are those that `--report` writes from the runs beside them."""

import re
import tarfile
from pathlib import Path

import pytest
from branchgrpo.cluster.study.file import load_study
from branchgrpo.cluster.study.report import write_report
from support import ROOT

STUDIES = ROOT / "studies"
REWARD = r"(?<![\d.,])0\.\d{3}(?!\d)"


@pytest.mark.parametrize("name", [folder.name for folder in sorted((STUDIES / "results").iterdir())])
def test_shipped_results_are_those_of_their_runs(name: str, tmp_path: Path) -> None:
    shipped = STUDIES / "results" / name
    with tarfile.open(shipped / "runs.tar.xz") as runs:
        runs.extractall(tmp_path, filter="data")
    written = write_report(load_study(STUDIES / f"{name}.yaml", tmp_path)).path
    assert written.read_text() == (shipped / "report.md").read_text()
    for table in shipped.glob("*.csv"):
        assert (written.parent / table.name).read_text() == table.read_text(), table.name


SECTIONS = re.findall(
    r"^## [^\n]*what `(\w+)` says\n(.*?)(?=^##)", (ROOT / "docs" / "studies.md").read_text(), re.MULTILINE | re.DOTALL
)
"""Study -> what the docs say of it, up to the next heading."""


@pytest.mark.parametrize(("name", "text"), SECTIONS, ids=[name for name, _ in SECTIONS])
def test_rewards_in_the_docs_are_those_of_the_report(name: str, text: str) -> None:
    """Those in tables, with three digits."""
    shipped = STUDIES / "results" / name
    report = set(re.findall(REWARD, (shipped / "report.md").read_text()))
    exact = [float(number) for table in shipped.glob("*.csv") for number in re.findall(r"\d\.\d+", table.read_text())]
    told = set(re.findall(REWARD, "\n".join(line for line in text.splitlines() if line.startswith("|"))))
    assert told
    assert told - report - {f"{number:.3f}" for number in exact} == set()


def test_every_result_has_its_section() -> None:
    assert {name for name, _ in SECTIONS} == {folder.name for folder in (STUDIES / "results").iterdir()}
