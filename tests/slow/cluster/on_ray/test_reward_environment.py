"""A reward with packages of its own, which the rest of the run doesn't have."""

import base64
import hashlib
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from branchgrpo.cluster.run.own_modules import check_modules
from ray_runs import environment_of_its_own, on_ray
from support import Settings

CODE = """
import os
import numpy as np

def score(media, prompts):
    return np.full(len(media), float(os.environ["MARK"]))
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A package `marker` that isn't installed."""
    files = {
        "marker.py": CODE,
        "marker-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: marker\nVersion: 1\n",
        "marker-1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    path = tmp_path / "marker-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{name},sha256={digest},{len(text)}")
        archive.writestr("marker-1.dist-info/RECORD", "\n".join([*lines, "marker-1.dist-info/RECORD,,"]))
    return path


def test_a_reward_has_packages_and_variables_of_its_own(
    wheel: Path, run_settings: Settings, tmp_path: Path, head: str
) -> None:
    settings = environment_of_its_own(run_settings, {"pip": [str(wheel)], "env_vars": {"MARK": "0.375"}})
    check_modules(settings)
    with closing(on_ray(settings, tmp_path / "run", head)) as loop:
        report = loop.iterate(1)
    assert (report.rewards["marked"] == 0.375).all()
    with pytest.raises(ImportError):
        __import__("marker")
