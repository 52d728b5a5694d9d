"""Faults of rewards on demand are of the kinds that the chaos benchmark takes them for."""

from pathlib import Path

import numpy as np
import pytest
from branchgrpo.benchmarks.chaos.troubled_ocr import FOLDER, MISTAKES, troubled_ocr
from branchgrpo.proto.media import Media
from branchgrpo.proto.scoring import NotScored, ScoreRequest
from branchgrpo.proto.settings import RewardSettings
from branchgrpo.reward_service.scorers import Scorers


@pytest.mark.parametrize("fault", ["fails", *MISTAKES])
def test_mistakes_are_final_and_a_lost_connection_is_not(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    scorers = Scorers({"ocr": RewardSettings(scorer=f"{troubled_ocr.__module__}:{troubled_ocr.__name__}")})
    request = ScoreRequest(Media(np.zeros((2, 32, 64, 3), np.uint8)), ["1", "2"], ["ocr"])
    (tmp_path / fault).touch()
    with pytest.raises(NotScored) as told:
        scorers.score(request)
    assert told.value.final == (fault in MISTAKES)
    assert not any(tmp_path.iterdir()), "a fault happens once"
    assert scorers.score(request).scores["ocr"].shape == (2,)
