"""Prompt files, and the order in which prompts are trained on."""

from pathlib import Path

import numpy as np

from ..proto.errors import InputError
from ..rollout_workers.noise import Stream


def read_prompts(path: Path, setting: str) -> list[str]:
    """The lines of a text file that are not blank. Raises InputError, naming `setting`, if there are none."""
    if not path.is_file():
        raise InputError(f"{setting} is '{path}'; no such file")
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f"{setting} is '{path}', which isn't UTF-8 text: {error.reason}") from error
    if not (prompts := [prompt for prompt in prompts if prompt]):
        raise InputError(f"{setting} is '{path}', which holds no prompt; write one per line")
    return prompts


def prompts_of(iteration: int, prompts: list[str], per_iteration: int, seed: int) -> list[str]:
    """The prompts of one iteration (the first is 1): consecutive ones of an order shuffled anew in every pass.

    A pure function of its arguments, so that a resumed run goes on in the same order.
    """
    first = (iteration - 1) * per_iteration
    return [
        prompts[_shuffled(i // len(prompts), len(prompts), seed)[i % len(prompts)]]
        for i in range(first, first + per_iteration)
    ]


def _shuffled(which_pass: int, count: int, seed: int) -> np.ndarray:
    noise = np.random.Philox(key=[seed, which_pass], counter=[0, 0, 0, int(Stream.PROMPTS)])
    return np.random.Generator(noise).permutation(count)
