"""Roots that are chosen early: which they are, what they cost, and that their trees are whole."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from branchgrpo.benchmarks.learning.early_pruning import Pruning, PruningWorker, candidates
from branchgrpo.benchmarks.support.gaussian import GaussianPolicy
from branchgrpo.benchmarks.support.scored_trees import Floats
from branchgrpo.proto.media import Media
from branchgrpo.proto.schedule import Schedule, tree_schedule
from branchgrpo.proto.settings import RolloutSettings
from branchgrpo.proto.tree import Conditioning, Task, Tree
from branchgrpo.rollout_workers.policies.base import Network
from branchgrpo.rollout_workers.policies.decoded import Decoded
from branchgrpo.rollout_workers.worker import RolloutWorker

SCORES = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])
STEPS, LOOK = 8, 3
PLAIN = tree_schedule(STEPS, kernel="dance", eta=0.5, splits={1: 2, 5: 2}, roots=4)  # 4 passes of a root, and 14
PRUNING = Pruning.within(PLAIN, "spread", 11, LOOK)


class Counted(GaussianPolicy):
    """Counts its rows, and draws the first coordinate as the brightness of a picture."""

    rows = 0

    def velocity(
        self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> torch.Tensor:
        self.rows += len(latents)
        return super().velocity(latents, sigma, conditioning, network)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents[:, 0] * 0.1 + 0.5).reshape(-1, 1, 1, 1).expand(-1, 10, 10, 3).float()


def brightness(media: Media, prompts: Sequence[str]) -> Floats:
    return media.looks().mean(axis=(1, 2, 3)) / 255


@pytest.mark.parametrize(("choice", "chosen"), [("best", [0, 2, 4, 5]), ("spread", [1, 3, 4, 5])])
def test_the_kept_roots_have_the_chosen_scores(choice: str, chosen: list[int]) -> None:
    assert Pruning(choice, 6, 2, 4).chosen(SCORES).tolist() == chosen  # type: ignore[arg-type]


def test_passes_are_those_of_the_plain_trees() -> None:
    assert PRUNING.kept == 2
    assert PLAIN.forward_passes == 11 * 4 + 2 * 14
    with pytest.raises(ValueError, match="32 of a tree's 72 are left, which must be 14 for each of 2 to 9"):
        Pruning.within(PLAIN, "best", 10, LOOK)
    with pytest.raises(ValueError, match="look is 8; of 8 steps, candidates can take 1 to 7"):
        Pruning.within(PLAIN, "best", 11, STEPS)


def test_trees_are_the_chosen_candidates() -> None:
    kept, policy = PRUNING.kept, Counted((2.0, -1.0), ((1.0, 0.3), (0.3, 0.5)), STEPS, 2)
    schedule = Schedule(PLAIN.steps, kept, PLAIN.sibling_spread)
    task = Task(1, (2, 3), ("0", "1"), schedule, 5)
    plain = RolloutWorker(policy, RolloutSettings(max_batch_rows=5))  # several parts for each tree
    worker = PruningWorker(plain, PRUNING, brightness)
    trees = {number: Tree(number, prompt, schedule) for number, prompt in zip(task.trees, task.prompts, strict=True)}
    for part in worker.sample(task):
        trees[part.tree].add(part)
    assert policy.rows == 2 * (PLAIN.forward_passes + kept * 4), "what is made again comes on top"

    everyone = candidates(task, PRUNING.candidates, [np.arange(PRUNING.candidates)] * 2)
    alone = [
        Tree(number, prompt, everyone.schedule) for number, prompt in zip(everyone.trees, everyone.prompts, strict=True)
    ]
    for part in plain.sample(everyone):
        alone[everyone.trees.index(part.tree)].add(part)
    sigma = torch.tensor(policy.sigmas(STEPS)[LOOK - 1]).float()
    for number, tree in trees.items():
        assert not np.isnan(tree.logprobs).any(), "a whole tree"
        of_tree = [own for own in alone if own.number // PRUNING.candidates == number]
        # The nodes at the look, 1 + 1 + 2 passes on: their predicted clean states, computed anew.
        states = torch.stack([own.state(node) for own in of_tree for node in (2, 3)])
        conditioning = {"number": torch.full((len(states),), int(tree.prompt))}
        with torch.no_grad():
            clean = states - sigma * policy.velocity(states, sigma.expand(len(states)), conditioning)
        early = brightness(Decoded.of(policy.decode(clean)).filled().media(), ())
        chosen = PRUNING.chosen(early.reshape(-1, 2).mean(axis=1))
        for node in range(schedule.nodes):
            depth = int(schedule.depth[node])
            root, own = divmod(node - schedule.first_node[depth], schedule.nodes_per_depth[depth] // kept)
            expected = of_tree[chosen[root]].state(everyone.schedule.first_node[depth] + own)
            torch.testing.assert_close(tree.state(node), expected)
