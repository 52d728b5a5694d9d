"""Sizes that pools of a run in progress can't have."""

from pathlib import Path

import pytest
from branchgrpo.cluster.cli import app
from branchgrpo.cluster.commands.scale import replica_counts
from branchgrpo.proto.errors import InputError
from typer.testing import CliRunner


@pytest.mark.parametrize("option", ["ocr", "ocr=", "ocr=0", "ocr=-1", "ocr=1.5", "ocr=10001", f"ocr={'9' * 5000}"])
def test_replicas_have_bounds(option: str) -> None:
    assert replica_counts(["ocr=2", "pick_score=10000"]) == {"ocr": 2, "pick_score": 10_000}
    with pytest.raises(InputError, match=r"--reward is 'ocr.*'; write name=count, .* count from 1 to 10000"):
        replica_counts([option])


@pytest.mark.parametrize("count", ["0", "-1", "10001", "9" * 30])
def test_workers_have_bounds(count: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["scale", str(tmp_path), "--rollout-workers", count])
    assert done.exit_code == 2
    assert "Invalid value for '--rollout-workers'" in done.output
