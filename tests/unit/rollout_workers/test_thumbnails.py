"""Thumbnails of recorded trees: what they show, how large they are, and that nothing else of a tree changes."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from branchgrpo.proto.schedule import ode_schedule, tree_schedule
from branchgrpo.proto.settings import RolloutSettings
from branchgrpo.proto.tree import SampledPart, Task
from branchgrpo.proto.webm import OPUS_RATE
from branchgrpo.rollout_workers.policies.base import Policy, collate
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.thumbnails import MAX_FRAMES, MAX_PIXELS, split_nodes, thumbnails
from branchgrpo.rollout_workers.worker import RolloutWorker
from PIL import Image, ImageSequence
from plain_diffusers import policy_of
from played_sounds import SOUNDING, heard, likeness, make_loud

SCHEDULE = tree_schedule(5, kernel="dance", eta=0.7, splits={0: 2, 2: 2})
TASK = Task(1, (3, 4), ("123", "45"), SCHEDULE, seed=7, recorded=4, previews=True)


def pixels(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def sampled(policy: Policy, task: Task, rows: int = 64) -> Iterator[SampledPart]:
    return RolloutWorker(policy, RolloutSettings(max_batch_rows=rows)).sample(task)


@pytest.mark.parametrize("rows", [64, 2])
def test_they_show_leaves_and_predicted_clean_states(tiny_policy: Policy, rows: int) -> None:
    """The clean state is x - sigma * v, for each split by itself, however the tree is cut into chunks."""
    states: dict[int, torch.Tensor] = {}
    pictures, leaves = {}, {}
    for part in sampled(tiny_policy, TASK, rows):
        assert part.thumbnails if part.tree < TASK.recorded else not part.thumbnails
        if part.tree < TASK.recorded:
            states |= dict(zip(part.nodes.tolist(), part.latents, strict=True))
            leaves |= dict(zip(part.leaves.tolist(), part.media.pictures, strict=True))
            assert not any(own.webm for own in part.thumbnails.values())
            pictures |= {node: own.picture for node, own in part.thumbnails.items()}
    assert sorted(pictures) == [*split_nodes(SCHEDULE), *sorted(leaves)]
    conditioning = collate([tiny_policy.encode("123")])
    for node, data in pictures.items():
        if node in leaves:
            np.testing.assert_array_equal(pixels(data), leaves[node])
            continue
        x, sigma = states[node][None].float(), tiny_policy.sigmas(5)[SCHEDULE.depth[node]]
        with torch.no_grad():
            clean = x - sigma * tiny_policy.velocity(x, torch.tensor([sigma]), conditioning)
            expected = (tiny_policy.decode(clean)[0].clamp(0, 1) * 255).numpy()
        np.testing.assert_allclose(pixels(data), expected, atol=1)


def test_recording_changes_nothing_of_a_tree(tiny_policy: Policy) -> None:
    recorded, plain = ([*sampled(tiny_policy, task)] for task in (TASK, replace(TASK, recorded=0, previews=False)))
    for one, other in zip(recorded, plain, strict=True):
        assert torch.equal(one.logprobs, other.logprobs)
        assert all(torch.equal(a, b) for a, b in zip(one.latents, other.latents, strict=True))
        np.testing.assert_array_equal(one.media.pictures, other.media.pictures)
        assert not other.thumbnails


@pytest.mark.parametrize("family", SOUNDING)
def test_leaves_with_sound_play_what_they_are(family: str, tmp_path: Path) -> None:
    """Each has its own sound, in full length, and its frames; splits have none, nor leaves that are samples too."""
    policy = load_policy(policy_of(family, tmp_path / "pipeline"))
    if family == "LTX-2":
        make_loud(policy.pipeline.vocoder)
    for part in sampled(policy, replace(TASK, recorded=9, sampled=4), rows=2):
        playing = {node: own.webm for node, own in part.thumbnails.items() if own.webm}
        assert [*playing] == ([] if part.tree < 4 else part.leaves.tolist())
        sound, rate = part.media.waveforms, part.media.sample_rate
        for number, data in enumerate(playing.values()):
            assert heard(data).shape[-1] / OPUS_RATE == pytest.approx(sound.shape[-1] / rate, abs=1e-3)
            alike = likeness(data, part.media)
            assert alike[number] > 0.95 > 0.8 > np.delete(alike, number).max(initial=0)
            with av.open(io.BytesIO(data)) as file:
                assert len([*file.decode(video=0)] if file.streams.video else []) == part.media.frames


@pytest.mark.parametrize("shape", [(512, 768, 3), (9, 64, 96, 3)])
def test_all_of_a_tree_s_are_bounded_however_large(shape: tuple[int, ...]) -> None:
    media = np.random.default_rng(1).integers(0, 256, (2, *shape), dtype=np.uint8)
    many = tree_schedule(20, kernel="dance", eta=0.3, splits=dict.fromkeys(range(8), 2))
    for schedule in (ode_schedule(3), many):
        count = schedule.leaves + len(split_nodes(schedule))
        for data in thumbnails(media, count):
            picture = Image.open(io.BytesIO(data))
            frames = sum(1 for _ in ImageSequence.Iterator(picture))
            assert frames == (1 if len(shape) == 3 else MAX_FRAMES)
            assert max(picture.size) <= 256
            assert picture.width / picture.height == pytest.approx(1.5, rel=0.05)
            assert frames * count * picture.width * picture.height <= 1.05 * MAX_PIXELS
