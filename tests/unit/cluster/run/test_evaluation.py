"""Means of an evaluation: diversity is that of prompts with several samples, and pictures are read for it alone."""

from collections.abc import Iterator

import numpy as np
import pytest
from branchgrpo.cluster.run.evaluation import Evaluation, means_of
from branchgrpo.proto.media import Media
from branchgrpo.proto.prompt import Prompt

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 2, 3, 3), np.uint8)
SCORES = {"ocr": np.arange(6.0)}


def unread() -> Iterator[Media]:
    raise AssertionError("pictures are read for nothing")
    yield


def test_pictures_of_single_samples_are_not_read() -> None:
    prompts = [Prompt("1"), Prompt("1", pictures=()), *"2345"]
    assert means_of([f"{number}" for number in range(6)], unread(), SCORES) == {"ocr": 2.5}
    with pytest.raises(AssertionError, match="for nothing"):
        means_of(prompts, unread(), SCORES)


@pytest.mark.parametrize("prompts", ["aabbcd", "abacbd"], ids=["samples follow each other", "in any order"])
def test_diversity_is_the_mean_over_prompts_with_several(prompts: str) -> None:
    expected = []
    for prompt in "ab":
        own = PICTURES[[other == prompt for other in prompts]] / 255
        expected.append(np.sqrt(own.var(axis=0, ddof=1).mean()))
    means = Evaluation(list(prompts), Media(PICTURES), SCORES).means
    assert means == {"ocr": 2.5, "diversity": pytest.approx(np.mean(expected), rel=1e-12)}
    assert means_of(list(prompts), [Media(PICTURES[:1]), Media(PICTURES[1:])], SCORES) == means
