"""`branchgrpo calibrate`: what ends it before anything is measured."""

from pathlib import Path

import pytest
from branchgrpo.cluster.commands.calibrate import calibrate
from branchgrpo.proto.errors import InputError
from rich.console import Console
from support import Settings


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_nothing_is_measured_for_a_file_that_exists(kind: str, run_settings: Settings, tmp_path: Path) -> None:
    """Nor loaded: the policy isn't there."""
    path = tmp_path / "there"
    path.touch() if kind == "file" else path.mkdir()
    with pytest.raises(InputError, match="there exists, and isn't overwritten"):
        calibrate(run_settings({"policy.pretrained": "/nowhere"}), Console(), path)
