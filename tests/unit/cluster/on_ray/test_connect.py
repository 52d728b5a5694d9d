"""What is told when Ray can't be started."""

from typing import Any

import pytest
import ray
from branchgrpo.cluster.on_ray.connect import connect
from branchgrpo.proto.errors import InputError


def test_a_ray_that_starts_too_slowly_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(**settings: Any) -> None:
        raise Exception("The current node timed out during startup.\nAnd more.")  # as Ray raises it after 30 seconds

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(InputError, match=r"can be started: The current node timed out during startup\.$"):
        connect(None)
