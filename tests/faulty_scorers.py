"""OCR models with faults, for tests: Ray's processes find this module on their PYTHONPATH."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from branchgrpo.reward_service.ocr import OcrScorer

FOLDER = "BRANCHGRPO_TEST_FAULTS"
"""Environment variable: folder in which faults that have happened are noted."""
Score = Callable[[npt.NDArray[np.uint8], Sequence[str]], dict[str, npt.NDArray[np.float64]]]


def faults_happen_once(threads: int | None) -> Score:
    """Its process dies in the second call, and another call raises; then all is well."""
    scorer, calls = OcrScorer(threads), 0

    def score(media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        nonlocal calls
        calls += 1
        folder = Path(os.environ[FOLDER])
        for name in ("died", "raised"):
            if calls > 1 and not (folder / name).exists():
                (folder / name).touch()
                if name == "died":
                    os._exit(1)
                raise ConnectionError("a passing fault")
        return scorer(media, prompts)

    return score


def waits_for_leave(threads: int | None) -> Score:
    """It scores nothing before a file `go` is there."""
    scorer = OcrScorer(threads)

    def score(media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        while not (Path(os.environ[FOLDER]) / "go").exists():
            time.sleep(0.05)
        return scorer(media, prompts)

    return score


def never_works(threads: int | None) -> Score:
    def score(media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        return {"ocr": np.full(len(media), np.nan)}

    return score


def cannot_read_666(threads: int | None) -> Score:
    scorer = OcrScorer(threads)

    def score(media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        if "666" in prompts:
            raise ValueError("666 can't be read")
        return scorer(media, prompts)

    return score


def dies_as_it_loads(threads: int | None) -> Score:
    """One whose process ends while it loads, as one without memory does."""
    os._exit(1)
