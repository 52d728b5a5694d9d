"""Early looks at branches: what agreement says of known scores, and the bias of predictions whose law is known."""

import numpy as np
import pytest
import torch
from branchgrpo.benchmarks.learning.early_scores import agreement, early_looks
from branchgrpo.benchmarks.support.gaussian import GaussianPolicy
from branchgrpo.benchmarks.support.scored_trees import Floats
from branchgrpo.proto.media import Media
from branchgrpo.proto.schedule import tree_schedule
from branchgrpo.proto.settings import RolloutSettings
from branchgrpo.proto.tree import Task, Tree
from branchgrpo.rollout_workers.worker import RolloutWorker

LATE = [np.array([0.0, 1.0, 2.0, 5.0]), np.array([1.0, 1.0, 3.0, 3.0])]


def test_perfect_early_scores_find_the_better_half() -> None:
    found = agreement([(late, late) for late in LATE])
    assert (found.bias.value, found.correlation) == (0.0, pytest.approx(1.0))
    assert found.gain.value == found.possible == (3.5 - 2.0 + 3.0 - 2.0) / 2


def test_what_early_scores_overstate_is_their_bias() -> None:
    found = agreement([(10.0 - late, late) for late in LATE])
    assert found.bias.value == 10.0 - 2 * 2.0
    assert found.correlation == pytest.approx(-1.0)
    assert found.gain.value == -found.possible


def test_equal_early_scores_tell_nothing() -> None:
    found = agreement([(np.full(4, 0.3), late) for late in LATE])
    assert np.isnan(found.correlation)
    assert found.gain.value == 0.0


class Drawn(GaussianPolicy):
    """Draws the first coordinate as the brightness of a picture of a hundred pixels, in steps of 1/25500."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        level = (latents[:, 0] * 0.05 + 0.5) * 25500
        pixels = (level[:, None] + torch.arange(100)) // 100
        return (pixels / 255).reshape(-1, 10, 10, 1).expand(-1, -1, -1, 3).float()


def brightness(media: Media, prompt: str) -> Floats:
    return media.looks().mean(axis=(1, 2, 3)) / 255 / 0.05 - 10


def test_predictions_of_a_linear_reward_are_unbiased() -> None:
    policy = Drawn((2.0, -1.0), ((1.0, 0.3), (0.3, 0.5)), steps := 16, 1)
    schedule = tree_schedule(steps, kernel="dance", eta=0.5, splits={0: 2, 4: 2, 8: 2})
    worker = RolloutWorker(policy, RolloutSettings())
    looks: dict[int, list[tuple[Floats, Floats]]] = {}
    for number in range(40):
        tree = Tree(0, "0", schedule)
        for part in worker.sample(Task(number + 1, (0,), ("0",), schedule, 0)):
            tree.add(part)
            tree.add_scores(part.leaves, {"brightness": brightness(part.media, tree.prompt)})
        for depth, look in early_looks(policy, tree, tree.rewards["brightness"], brightness, 64).items():
            looks.setdefault(depth, []).append(look)
    assert set(looks) == set(range(1, steps))
    for depth, of_trees in looks.items():
        bias = agreement(of_trees).bias
        error = (bias.high - bias.value) / 1.96
        assert abs(bias.value) < 5 * error + 0.03, depth  # 0.03 for the discretisation of the steps
    last = agreement(looks[steps - 1])
    assert last.correlation == pytest.approx(1.0, abs=1e-3), "the last step adds no noise"
