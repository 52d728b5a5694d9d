"""Run folders, and a client of the pages about them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.view.runs import Runs
from branchgrpo.cluster.view.server import create_app
from fastapi.testclient import TestClient
from run_folders import write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder into `runs`."""

    def make(name: str = "one", iterations: int = 3, **changes: Any) -> Path:
        return write_run(tmp_path / "runs" / name, iterations, **changes)

    return make


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    """A browser, so to speak, of the pages about `runs`."""
    (tmp_path / "runs").mkdir(exist_ok=True)
    return TestClient(create_app(Runs(tmp_path / "runs")), base_url="http://127.0.0.1")
