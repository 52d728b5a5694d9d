"""A reward with packages of its own that can't be installed, which takes minutes to find out."""

from contextlib import closing
from pathlib import Path

import pytest
from branchgrpo.proto.errors import InputError
from ray_runs import environment_of_its_own, on_ray
from support import Settings


def test_packages_that_are_not_there_are_told(run_settings: Settings, tmp_path: Path, head: str) -> None:
    settings = environment_of_its_own(run_settings, {"pip": [str(tmp_path / "nothing-1-py3-none-any.whl")]})
    with (
        pytest.raises(InputError, match=r"pools\.rewards\.marked\.runtime_env can't be built .*\n(.*\n)*.*nothing-1"),
        closing(on_ray(settings, tmp_path / "run", head)),
    ):
        pass
