"""What the patches of DeepSpeed leave as they found it."""

import os

import pytest
from branchgrpo.learner.deepspeed_patches import DATA_ONLY, data_only


@pytest.mark.parametrize("own", [None, "0", "1"])
def test_a_variable_of_the_user_is_as_it_was(own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_ONLY, raising=False)
    if own is not None:
        monkeypatch.setenv(DATA_ONLY, own)
    with data_only():
        assert os.environ[DATA_ONLY] == "1"
    assert os.environ.get(DATA_ONLY) == own
