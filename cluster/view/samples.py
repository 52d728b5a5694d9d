"""Samples of an iteration by prompt, the highest score first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..run.samples import Samples, parse, sampled_iterations, samples_file
from .pages import WEBM, Links, Picture, figure, shown
from .runs import Run
from .sources import sources


@dataclass(frozen=True)
class SampledPrompt:
    """The pictures of one prompt in an iteration."""

    prompt: str
    started_from: Sequence[str]
    """Addresses of the pictures that came with the prompt."""
    mean: str
    spread: str
    """Standard deviation of the scores."""
    pictures: Sequence[tuple[Mapping[str, str], str]]
    """What shows each, and its score, from the highest score to the lowest."""


def iterations(run: Run) -> list[int]:
    """Iterations of which the run has kept samples, or a grid of them, ascending."""
    return sampled_iterations(run.folder) if run.file("samples") else []


def samples_of(run: Run, iteration: int) -> Samples | None:
    """The samples of an iteration; None if there is only a grid of them, or nothing."""
    return run.read(samples_file(iteration), parse)


def by_prompt(samples: Samples, iteration: int, reward: str, links: Links) -> list[SampledPrompt]:
    """The prompts of an iteration, in their order, with their pictures by a reward."""
    scores = samples.rewards[reward]
    found = []
    for prompt in dict.fromkeys(samples.prompts):
        own = np.flatnonzero([other == prompt for other in samples.prompts])
        order = own[np.argsort(-scores[own], kind="stable")]
        pictures = [
            (shown(links, f"samples/{iteration}/{i}", bool(samples.playable)), figure(float(scores[i]))) for i in order
        ]
        mean, spread = float(scores[own].mean()), float(scores[own].std())
        found.append(SampledPrompt(prompt, sources(prompt, links), figure(mean), figure(spread), pictures))
    return found


def sample_picture(run: Run, names: list[str]) -> Picture:
    """What is seen of a sample of an iteration by its number, with `webm` what plays, or without a number the grid of
    all. Raises LookupError if there is none."""
    form = names[2:]
    iteration, *which = map(int, names[:2])
    if not which:
        path = run.file(samples_file(iteration, "png"))
        if path is None:
            raise LookupError(iteration)
        return Picture(path.read_bytes(), "image/png")
    (number,) = which
    samples = samples_of(run, iteration)
    shown = (samples.playable if form == [WEBM] else samples.pictures) if samples else ()
    if not 0 <= number < len(shown):
        raise LookupError("/".join(names))
    return Picture(shown[number], "video/webm" if form == [WEBM] else "image/webp")
