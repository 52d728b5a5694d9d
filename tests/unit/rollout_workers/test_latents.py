"""Rewards of latents: what they are given, and that nothing is decoded at which nobody looks."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import support
import torch
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.schedule import tree_schedule
from branchgrpo.proto.settings import RolloutSettings, RunSettings
from branchgrpo.proto.tree import SampledPart, Task
from branchgrpo.rollout_workers import metrics
from branchgrpo.rollout_workers.policies.base import Policy
from branchgrpo.rollout_workers.policies.decoded import Decoded
from branchgrpo.rollout_workers.worker import RolloutWorker

TASK = Task(1, (3, 4), ("123", "45"), tree_schedule(5, kernel="dance", eta=0.7, splits={0: 2, 2: 2}), 7, latents=True)
WARMTH = {"function": "support:warmth", "reads": "latents"}


def decoded(policy: Policy, latents: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
    pictures = Decoded.of(policy.decode(torch.from_numpy(latents).to(dtype))).media().pictures
    assert pictures is not None
    return pictures


def counted() -> float:
    return float(metrics.LEAVES_DECODED._value.get())


@pytest.mark.parametrize("rows", [64, 2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_latents_decode_into_the_leaves_pictures(tiny_policy: Policy, rows: int, precision: Any) -> None:
    settings = RolloutSettings(max_batch_rows=rows, latents_precision=precision)
    worker, dtype = RolloutWorker(tiny_policy, settings), getattr(torch, precision)
    for part in worker.sample(TASK):
        assert part.media.latents is not None
        np.testing.assert_array_equal(decoded(tiny_policy, part.media.latents, dtype), part.media.pictures)


@pytest.mark.parametrize("rows", [64, 2])
def test_only_asked_for_trees_are_decoded(tiny_policy: Policy, rows: int) -> None:
    """The others are as they would be, without pictures."""

    def sampled(task: Task) -> list[SampledPart]:
        return [*RolloutWorker(tiny_policy, RolloutSettings(max_batch_rows=rows)).sample(task)]

    before = counted()
    some, every = sampled(replace(TASK, decoded=4)), sampled(TASK)
    assert counted() - before == 3 * TASK.schedule.leaves
    for one, whole in zip(some, every, strict=True):
        np.testing.assert_array_equal(one.media.latents, whole.media.latents)
        assert torch.equal(one.logprobs, whole.logprobs)
        if one.tree == 3:
            np.testing.assert_array_equal(one.media.pictures, whole.media.pictures)
            assert one.diversity == whole.diversity
        else:
            assert (one.media.kind, one.diversity) == ("latent", None)


def test_a_run_hands_latents_and_pictures_to_whom_they_suit(
    run_settings: Callable[..., RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rewards, one of pictures and one of latents, are given the same leaves."""
    given: dict[str, list[np.ndarray]] = {"shade": [], "warmth": []}

    def noting(name: str, own: Any, media: Any, prompts: Any) -> Any:
        given[name].append(media)
        return own(media, prompts)

    for name in given:
        monkeypatch.setattr(support, name, partial(noting, name, getattr(support, name)))
    rewards = {"shade": {"function": "support:shade"}, "warmth": WARMTH}
    loop = InProcessLoop(run_settings({"rewards": rewards}), ["1", "2", "3", "4"])
    loop.iterate(1)
    evaluation = loop.evaluate(["123"])
    assert evaluation.media.latents is None
    for pictures, latents in zip(given["shade"], given["warmth"], strict=True):
        np.testing.assert_array_equal(decoded(loop.policy, latents), pictures)


def test_nothing_is_decoded_that_nobody_looks_at(run_settings: Callable[..., RunSettings]) -> None:
    changes = {"rewards": {"warmth": WARMTH}, "logging.trees_every": 0, "prompts.per_iteration": 6}
    settings = run_settings({**changes, "logging.samples_every": 2})
    loop, before = InProcessLoop(settings, ["1", "2", "3", "4", "5", "6"]), counted()
    report = loop.iterate(1)
    assert (report.diversity, report.samples, counted()) == (None, [], before)
    report = loop.iterate(2)
    assert len(report.samples) == 4
    assert report.diversity is not None
    assert counted() - before == 4 * settings.schedule.build().leaves == settings.decoded_trees(2) * 4
    assert loop.evaluate(["123"]).rewards["warmth"].shape == (1,)


def test_built_in_rewards_read_no_latents(run_settings: Callable[..., RunSettings]) -> None:
    with pytest.raises(InputError, match=r"rewards.ocr.reads is 'latents', which needs a function, scorer or url"):
        run_settings({"rewards": {"ocr": {"reads": "latents"}}})


def test_who_reads_what_isnt_there_says_so() -> None:
    pictures, latents = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 4), np.float32)
    with pytest.raises(InputError, match="a reward of latents was given a picture without its latents"):
        Media(pictures).read("latents")
    with pytest.raises(InputError, match="a reward of media was given latents alone"):
        Media(latents=latents).read("media")
