"""Rewards with faults on demand: each file in a folder is one fault, and is removed once the fault has happened.

Named in a recipe: `rewards.ocr.scorer: branchgrpo.benchmarks.chaos.troubled_ocr:troubled_ocr`.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...reward_service.ocr import OcrScorer
from ..support.stand_ins import Score, Scores

FOLDER = "BRANCHGRPO_FAULTS"
"""Environment variable that names the folder."""
SLOW_SECONDS = 5.0
PASSING_STATUSES = ("slow", "fails")
"""Which a run gets over by itself."""
MISTAKES = ("nan", "count")
"""Which end a run: another attempt would meet them again."""


def troubled_ocr(threads: int | None) -> Score:
    """OCR that is slow, loses a connection, gives NaN or too few scores, once for every file of this name."""
    scorer = OcrScorer(threads)

    def score(media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> Scores:
        fault = next((name for name in (*PASSING_STATUSES, *MISTAKES) if _claimed(name)), None)
        if fault == "fails":
            raise ConnectionError("a fault on demand")
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        scores = dict(scorer(media, prompts))
        if fault == "nan":
            return {name: np.where(np.arange(len(values)) == 0, np.nan, values) for name, values in scores.items()}
        if fault == "count":
            return {name: values[:-1] for name, values in scores.items()}
        return scores

    return score


def _claimed(name: str) -> bool:
    """Whether this process is the one to have a fault."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return False
    try:
        (Path(folder) / name).unlink()
    except FileNotFoundError:
        return False
    return True
