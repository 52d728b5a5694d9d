"""Learning from leaves alone: the gradient against an independent computation, the old policy, what fits with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from branchgrpo.cluster.commands.check import counted
from branchgrpo.learner.advantages import leaf_advantages
from branchgrpo.learner.credit import leaf_credit
from branchgrpo.learner.leaf_objectives import awm_objective, nft_loss
from branchgrpo.learner.leaf_rows import NoisedLeaves, leaf_rows, noised, noised_batches
from branchgrpo.learner.learner import Learner
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.settings import RunSettings
from branchgrpo.proto.tree import Tree, Window
from branchgrpo.rollout_workers.policies.base import collate, trainable
from branchgrpo.rollout_workers.policies.load import load_policy
from support import Settings, assert_bit_equal

Sample = Callable[..., list[Tree]]
NFT = {
    "schedule": {"method": "nft", "steps": 4, "group": 4},
    "advantage": {"normaliser": "group", "clip": 1.2},
    "learner.objective": "nft",
    "learner.updates_per_iteration": 1,
    "prompts.per_iteration": 2,
}


def learned(learner: Learner, trees: list[Tree], iteration: int = 1):
    learner.accumulate(Window(iteration, trees, closes_update=True))
    return learner.step()


def gradient_of(learner: Learner) -> dict[str, torch.Tensor]:
    """Of the first step: Adam's first moment over 1 - beta."""
    return {
        name: learner.engine.module.optimizer.state[parameter]["exp_avg"] / 0.1
        for name, parameter in trainable(learner.policy.network).items()
    }


def naive_gradient(settings: RunSettings, trees: list[Tree]) -> dict[str, torch.Tensor]:
    """A loop over leaves and levels, with z-scores and errors written out, and autograd."""
    policy, old = load_policy(settings.policy), load_policy(settings.policy)
    beta, levels = settings.learner.nft.strength, settings.learner.nft.noise_levels
    for tree in trees:
        scores = tree.rewards["ocr"]
        z = np.clip((scores - scores.mean()) / scores.std(ddof=1), -1.2, 1.2)
        conditioning = collate([policy.encode(tree.prompt)])
        for row in leaf_rows([tree], [leaf_credit(tree, {"ocr": 1.0}, settings.advantage)], 1.2, levels):
            batch = noised([row], settings.seed, 1, levels)
            x0, x, s = tree.state(row.leaf).float(), batch.states[0], float(batch.sigmas[0])
            noise = (x - (1 - s) * x0) / s
            assert row.level / levels < s < (row.level + 1) / levels
            torch.testing.assert_close((1 - s) * x0 + s * noise, x)
            new = policy.velocity(x[None], torch.tensor([s]), conditioning)[0]
            with torch.no_grad():
                before = old.velocity(x[None], torch.tensor([s]), conditioning)[0]
            share = z[row.leaf - tree.schedule.first_node[-2]] / 1.2
            loss = 0.0
            if settings.learner.objective == "awm":
                likely, likely_before = (-((v - (noise - x0)) ** 2).mean() for v in (new, before))
                loss = -share * beta * (likely - likely_before).exp()  # beta is divided by below
            else:
                for factor, v in (
                    (0.5 + 0.5 * share, (1 - beta) * before + beta * new),
                    (0.5 - 0.5 * share, (1 + beta) * before - beta * new),
                ):
                    wrong = (x - s * v) - x0
                    loss = loss + factor * (wrong**2).mean() / wrong.detach().abs().mean()
            (loss / beta / (len(z) * levels) / len(trees)).backward()
    return {name: parameter.grad for name, parameter in trainable(policy.network).items()}


@pytest.mark.parametrize(("objective", "strength"), [("nft", 1.0), ("nft", 0.3), ("awm", 1.0)])
def test_the_gradient_is_that_of_a_naive_loop(
    run_settings: Settings, sample: Sample, objective: str, strength: float
) -> None:
    changes = {"learner.objective": objective, "learner.nft": {"strength": strength, "noise_levels": 3}}
    settings = run_settings({**NFT, **changes})
    trees = sample(load_policy(settings.policy), settings.schedule.build(), prompts=("123", "45"))
    expected = naive_gradient(settings, trees)
    learner = Learner(load_policy(settings.policy), settings)
    stats = learned(learner, trees)
    assert (stats.rows, stats.edges, stats.skipped_edges) == (24, 24, 0)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in gradient_of(learner).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4 * scale, rtol=1e-4)


def test_with_the_old_policy_it_is_weighted_flow_matching() -> None:
    """At new = old the gradient is (2 * merit - 1) times that of the error itself, whatever the strength."""
    torch.manual_seed(0)
    old = torch.randn(5, 3, 2)
    batch = NoisedLeaves(
        states=torch.randn(5, 3, 2),
        sigmas=torch.rand(5),
        leaves=torch.randn(5, 3, 2),
        conditioning={},
        merits=torch.rand(5),
        weights=torch.rand(5),
    )
    for strength in (0.2, 1.0, 3.0):
        new = old.clone().requires_grad_()
        nft_loss(new, old, batch, strength).backward()
        s = batch.sigmas[:, None, None]
        wrong = batch.states - s * old - batch.leaves
        slope = -2 * s * wrong / wrong.abs().mean((1, 2), keepdim=True) / 6
        expected = (batch.weights * (2 * batch.merits - 1))[:, None, None] * slope
        torch.testing.assert_close(new.grad, expected)


def test_awm_clips_the_ratio_of_how_leaves_are_matched() -> None:
    """Row by row: the slope of the likelihood, times ratio and advantage; none where the ratio is out of range."""
    torch.manual_seed(0)
    leaves, noise, sigmas = torch.randn(40, 3, 2), torch.randn(40, 3, 2), 0.1 + 0.8 * torch.rand(40)
    s = sigmas[:, None, None]
    batch = NoisedLeaves((1 - s) * leaves + s * noise, sigmas, leaves, {}, torch.rand(40), torch.rand(40))
    old = noise - leaves + 0.3 * torch.randn(40, 3, 2)
    new = (old + 0.05 * torch.randn(40, 3, 2)).requires_grad_()
    objective = awm_objective(new, old, batch, clip_range=0.005)
    objective.loss.backward()
    assert new.grad is not None
    clipped = 0
    for row, slope in enumerate(new.grad):
        wrong, before = (v[row].detach().double() - (noise - leaves)[row].double() for v in (new, old))
        ratio = float(((before**2).mean() - (wrong**2).mean()).exp())
        advantage = 2 * float(batch.merits[row]) - 1
        beyond = (ratio > 1.005 and advantage > 0) or (ratio < 0.995 and advantage < 0)
        expected = 0 * wrong if beyond else float(batch.weights[row]) * advantage * ratio * 2 * wrong / 6
        torch.testing.assert_close(slope.double(), expected, atol=1e-6, rtol=1e-4)
        assert bool(objective.clipped[row]) == beyond
        clipped += beyond
    assert 0 < clipped < 40


def test_awm_tells_how_many_leaves_were_clipped(run_settings: Settings, sample: Sample) -> None:
    """None in an iteration's first update, whose policy has sampled the leaves."""
    settings = run_settings({**NFT, "learner.objective": "awm", "learner.passes": 2, "learner.clip_range": 1e-9})
    trees = sample(load_policy(settings.policy), settings.schedule.build(), prompts=("123", "45"))
    twice = learned(Learner(load_policy(settings.policy), settings), trees)
    once = learned(Learner(load_policy(settings.policy), run_settings({**NFT, "learner.objective": "awm"})), trees)
    assert once.clip_fraction == 0
    assert 0 < twice.clip_fraction <= 0.5
    assert (once.reference_rows, twice.reference_rows) == (0, once.rows)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_share_the_rows(run_settings: Settings, sample: Sample, ranks: int) -> None:
    settings = run_settings({**NFT, "learner.rows_per_micro_batch": 3})
    trees = sample(load_policy(settings.policy), settings.schedule.build(), prompts=("123", "45"))
    credits = [leaf_credit(tree, {"ocr": 1.0}, settings.advantage) for tree in trees]
    rows = leaf_rows(trees, credits, settings.advantage.clip, 2)[:-1]
    shares = [list(noised_batches(rows, settings, 1, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    states = torch.cat([batch.states[batch.weights > 0] for share in shares for batch in share])
    assert torch.equal(states, noised(rows, settings.seed, 1, 2).states)


def test_equal_leaves_teach_nothing(run_settings: Settings, sample: Sample) -> None:
    settings = run_settings(NFT)
    trees = sample(load_policy(settings.policy), settings.schedule.build(), prompts=("123", "45"), rewards="equal")
    learner = Learner(load_policy(settings.policy), settings)
    before = {name: value.clone() for name, value in learner.weights().items()}
    stats = learned(learner, trees)
    assert (stats.rows, stats.skipped_edges) == (0, 16)
    assert_bit_equal(before, learner.weights())


def test_advantages_of_leaves_are_those_of_their_edges(run_settings: Settings, sample: Sample) -> None:
    """The last step doesn't split: a leaf is worth what its parent is worth."""
    from branchgrpo.learner.advantages import depth_advantages
    from branchgrpo.learner.fusion import fuse

    schedule = run_settings().schedule.build()
    values = fuse(np.random.default_rng(0).random(schedule.leaves), np.zeros(schedule.nodes), schedule)
    for normaliser in ("depth", "leaf", "group"):
        edges, _ = depth_advantages(values, schedule, normaliser)
        leaves, _ = leaf_advantages(values, schedule, normaliser)
        np.testing.assert_allclose(leaves, edges[schedule.first_node[-3] : schedule.first_node[-2]])


def test_rollouts_sample_with_a_running_average(run_settings: Settings, sample: Sample) -> None:
    settings = run_settings({**NFT, "learner.nft": {"old_decay": 0.75}})
    learner = Learner(load_policy(settings.policy), settings)
    trees = sample(load_policy(settings.policy), settings.schedule.build(), prompts=("123", "45"))
    expected = {name: value.clone() for name, value in learner.engine.weights().items()}
    for iteration in (1, 2):
        learned(learner, trees, iteration)
        learner.publish()
        expected = {name: 0.75 * value + 0.25 * learner.engine.weights()[name] for name, value in expected.items()}
    for name, value in learner.weights().items():
        torch.testing.assert_close(value, expected[name])
        assert learner.old is not None
    x, s, conditioning = trees[0].state(0)[None], torch.tensor([0.5]), collate([learner.policy.encode("123")])
    sampler = learner.old.sampler()
    sampler.network.load_state_dict(learner.weights(), strict=False)
    assert torch.equal(learner.old.velocity(x, s, conditioning), sampler.velocity(x, s, conditioning))
    assert not torch.equal(learner.old.velocity(x, s, conditioning), learner.policy.velocity(x, s, conditioning))


@pytest.mark.parametrize("old_decay", [0.0, 0.75])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("updates", [1, 2])
def test_the_old_policy_sees_the_rows_that_are_planned(
    run_settings: Settings, sample: Sample, old_decay: float, passes: int, updates: int
) -> None:
    """As many as `check` counts, and `plan` takes forward passes for."""
    nft = {**NFT, "learner.nft": {"old_decay": old_decay}, "learner.skip_zero_advantage": False}
    settings = run_settings({**nft, "learner.passes": passes, "learner.updates_per_iteration": updates})
    learner = Learner(load_policy(settings.policy), settings)
    trees = sample(learner.policy, settings.schedule.build(), prompts=("123", "45"))
    whole = settings.trees_per_update
    made = [learned(learner, trees[begin : begin + whole]) for begin in range(0, len(trees), whole)]
    share = settings.learner.old_policy_share
    assert sum(one.reference_rows for one in made) == pytest.approx(share * sum(one.rows for one in made))
    planned = counted(settings)
    assert planned["rows of the learner"][1] == sum(one.rows for one in made)
    assert planned.get("rows of the old policy", (0, 0))[1] == pytest.approx(sum(one.reference_rows for one in made))


def test_an_average_that_is_given_up_isn_t_sampled_with(run_settings: Settings, sample: Sample, tmp_path: Path) -> None:
    """Nor is it the policy that sampled, to the updates of a run that resumes without one."""
    settings = run_settings({**NFT, "learner.nft": {"old_decay": 0.75}, "learner.updates_per_iteration": 2})
    averaged = Learner(load_policy(settings.policy), settings)
    for tree in sample(averaged.policy, settings.schedule.build(), prompts=("123", "45")):
        learned(averaged, [tree])
    averaged.publish()
    averaged.save(tmp_path)
    settings = run_settings({**NFT, "learner.updates_per_iteration": 2})
    resumed = Learner(load_policy(settings.policy), settings)
    resumed.load(tmp_path)
    assert_bit_equal(resumed.weights(), averaged.engine.weights())
    assert any(not torch.equal(value, resumed.weights()[name]) for name, value in averaged.weights().items())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learner.kl_weight": 0.1}, "learner.kl_weight is 0.1"),
        ({"learner.trust_region": "guard"}, "learner.trust_region is 'guard'"),
        ({"learner.zero_stage": 3}, "learner.zero_stage is 3"),
        ({"staleness": 1, "execution": "ray"}, "staleness is 1"),
        (
            {"learner.objective": "awm", "learner.keep_graph": True},
            "learner.objective 'awm' needs .* learner.keep_graph is on",
        ),
        ({"pruning": {"width": {"mode": "parent_top1"}}}, "pruning is on"),
        ({"learner.nft": {"old_decay": 0.5}, "execution": "ray", "placement": "colocated"}, "old_decay 0.5"),
        ({"learner.objective": "ratio"}, "schedule trains no step"),
        ({"advantage.normaliser": "depth"}, "every advantage would be 0"),
    ],
)
def test_what_does_not_fit_is_told(run_settings: Settings, changes: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        run_settings({**NFT, **changes})


def test_the_first_update_needs_no_second_network(run_settings: Settings, sample: Sample) -> None:
    """Until it is made, the policy that sampled is the trained one."""
    settings = run_settings({**NFT, "learner.updates_per_iteration": 2})
    learner = Learner(load_policy(settings.policy), settings)
    trees = sample(load_policy(settings.policy), settings.schedule.build(), prompts=("123", "45"))
    first, second = (learned(learner, [tree]) for tree in trees)
    assert (first.reference_rows, second.reference_rows) == (0, second.rows)
    assert Learner(load_policy(settings.policy), run_settings(NFT)).old is None
