"""The expansion against plain diffusers, and against itself in other cuts."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.cluster.plan.stretches import stretches
from branchgrpo.proto.schedule import Kernel, ode_schedule, tree_schedule
from branchgrpo.proto.settings import PolicySettings, RolloutSettings, ScheduleSettings
from branchgrpo.proto.tree import Task, Tree, TreePart
from branchgrpo.rollout_workers.noise import Stream, gaussian
from branchgrpo.rollout_workers.policies.base import Policy
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from diffusers import DPMSolverMultistepScheduler, FluxPipeline

SCHEDULE = tree_schedule(6, kernel="dance", eta=0.7, splits={0: 2, 2: 3}, roots=2)
TASK = Task(iteration=3, trees=(4, 5, 6), prompts=("123", "456", "789"), schedule=SCHEDULE, seed=11)


def whole(parts: list[TreePart], number: int) -> Tree:
    tree = Tree(number, "", SCHEDULE)
    for part in parts:
        if part.tree == number:
            tree.add(part)
    return tree


@pytest.mark.parametrize("embedded", [False, True], ids=["like FLUX.1-dev", "glyphs"])
def test_ode_equals_plain_diffusers(policy_settings: PolicySettings, embedded: bool) -> None:
    settings = policy_settings
    if embedded:
        settings = settings.model_copy(update={"pretrained": "glyphs", "height": 32, "width": 64})
    policy = load_policy(settings)
    steps, prompts = 7, ["123", "456"]
    worker = RolloutWorker(policy, RolloutSettings())
    task = Task(iteration=0, trees=(0, 1), prompts=tuple(prompts), schedule=ode_schedule(steps), seed=5)
    leaves = torch.stack([part.latents[-1] for part in worker.sample(task)])
    ours = policy.decode(leaves).clamp(0, 1).numpy()

    pipeline = policy.pipeline
    pipeline.set_progress_bar_config(disable=True)
    starts = torch.stack([gaussian(5, 0, i, 0, Stream.START, policy.latent_shape) for i in range(2)])
    theirs = pipeline(
        prompts,
        height=settings.height,
        width=settings.width,
        num_inference_steps=steps,
        guidance_scale=settings.guidance_scale,
        max_sequence_length=settings.max_sequence_length,
        latents=starts,
        output_type="np",
    ).images
    assert isinstance(pipeline, FluxPipeline)
    assert theirs.std() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("limit", [1, 5, 7, 36])
def test_cuts_change_no_noise_and_no_topology(tiny_policy: Policy, limit: int) -> None:
    whole_batch = list(RolloutWorker(tiny_policy, RolloutSettings(max_batch_rows=1000)).sample(TASK))
    cut = list(RolloutWorker(tiny_policy, RolloutSettings(max_batch_rows=limit)).sample(TASK))
    assert len(whole_batch) == 3
    assert len(cut) > 3 or limit >= 36
    for number in TASK.trees:
        one, other = whole(whole_batch, number), whole(cut, number)
        for node in range(SCHEDULE.nodes):
            torch.testing.assert_close(other.state(node), one.state(node), atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(other.logprobs, one.logprobs, atol=1e-4)
        leaves = np.concatenate([part.leaves for part in cut if part.tree == number])
        assert sorted(leaves) == list(range(SCHEDULE.first_node[-2], SCHEDULE.nodes))


@pytest.mark.parametrize("limit", [1000, 3])
@pytest.mark.parametrize("method", ["nft", "dance_grpo", "branch_grpo"])
def test_antithetic_roots_start_from_opposite_noises(
    tiny_policy: Policy, small_methods: dict[str, dict[str, Any]], method: str, limit: int
) -> None:
    """The first of a pair is the root that there is without pairs; each tree has pairs of its own."""

    def roots(root_noise: str) -> list[torch.Tensor]:
        given = {"method": method, **small_methods[method], "root_noise": root_noise}
        schedule = ScheduleSettings.model_validate(given).build()
        task = Task(3, (4, 5), ("123", "456"), schedule, 11)
        trees = {number: Tree(number, "", schedule) for number in task.trees}
        for part in RolloutWorker(tiny_policy, RolloutSettings(max_batch_rows=limit)).sample(task):
            trees[part.tree].add(part)
        return [torch.stack([tree.state(root) for root in range(schedule.roots)]) for tree in trees.values()]

    for alone, paired in zip(roots("independent"), roots("antithetic"), strict=True):
        assert torch.equal(paired[0::2], alone[0::2])
        assert torch.equal(paired[1::2], -paired[0::2][: len(paired[1::2])])


@pytest.mark.parametrize("limit", [1000, 5])
def test_each_parent_state_goes_forward_once(tiny_policy: Policy, limit: int) -> None:
    batches: list[int] = []
    tiny_policy.network.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    list(RolloutWorker(tiny_policy, RolloutSettings(max_batch_rows=limit)).sample(TASK))
    assert sum(batches) == len(TASK.trees) * SCHEDULE.forward_passes
    assert max(batches) <= limit
    if limit == 1000:
        assert len(batches) == len(SCHEDULE.steps)


def test_first_leaves_come_before_other_chunks_have_started(tiny_policy: Policy) -> None:
    done = 0

    def count(module: object, args: object, kwargs: dict) -> None:
        nonlocal done
        done += len(kwargs["hidden_states"])

    tiny_policy.network.register_forward_pre_hook(count, with_kwargs=True)
    parts = RolloutWorker(tiny_policy, RolloutSettings(max_batch_rows=6)).sample(TASK)
    next(parts)
    assert done < len(TASK.trees) * SCHEDULE.forward_passes / 3


@pytest.mark.parametrize("limit", [1, 64])
def test_more_steps_need_no_deeper_stack(tiny_policy: Policy, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two starts, also where each goes alone: thousands of steps may be wanted. The plan counts the same passes."""
    depths, velocity = [], tiny_policy.velocity

    def noted(*given: Any) -> torch.Tensor:
        depths.append(len(inspect.stack(0)))
        return velocity(*given)

    monkeypatch.setattr(tiny_policy, "velocity", noted)
    task = Task(iteration=0, trees=(0, 1), prompts=("1", "2"), schedule=ode_schedule(30), seed=5)
    assert len(list(RolloutWorker(tiny_policy, RolloutSettings(max_batch_rows=limit)).sample(task))) == 2
    assert len(set(depths)) == 1
    (*_, last) = stretches(ode_schedule(2000), trees=2, max_batch_rows=limit)
    assert len(last.forwards) == 2000


def test_the_parts_of_a_tree_hold_parents_before_children(tiny_policy: Policy) -> None:
    parts = list(RolloutWorker(tiny_policy, RolloutSettings(max_batch_rows=5)).sample(TASK))
    seen: set[int] = set()
    for part in (part for part in parts if part.tree == 5):
        assert (part.conditioning is None) == bool(seen)
        assert list(part.nodes) == sorted(part.nodes)
        seen |= set(part.nodes.tolist())
        assert {int(SCHEDULE.parent[node]) for node in part.nodes} - {-1} <= seen
        assert part.media.pictures.dtype == np.uint8
        assert len(part.media) == len(part.leaves)


@pytest.mark.parametrize("kernel", ["dance", "flow", "cps"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_log_probability_is_that_of_the_stored_state(tiny_policy: Policy, kernel: Kernel, precision: str) -> None:
    """Recomputed from stored states one by one, in the plain form of the density."""
    schedule = tree_schedule(4, kernel=kernel, eta=0.5, splits={1: 2})
    rollout = RolloutSettings(latents_precision=precision)
    (part,) = RolloutWorker(tiny_policy, rollout).sample(Task(1, (0,), ("123",), schedule, 2))
    sigmas = tiny_policy.sigmas(4)
    conditioning = {name: value[None] for name, value in tiny_policy.encode("123").items()}
    from branchgrpo.rollout_workers.kernels import step_coefficients

    for node in range(1, schedule.nodes):
        step = int(schedule.depth[node]) - 1
        if not schedule.steps[step].stochastic:
            assert part.logprobs[node] == 0
            continue
        assert part.latents[node].dtype == getattr(torch, precision)
        x = part.latents[schedule.parent[node]][None]
        with torch.no_grad():
            v = tiny_policy.velocity(x, torch.tensor([sigmas[step]]), conditioning)
        t = step_coefficients(kernel, sigmas[step], sigmas[step + 1], 0.5, sigmas[1])
        mean = t.a * x.double() + t.b * v.double()
        z = (part.latents[node].double() - mean) / t.std
        density = (-0.5 * z**2 - math.log(t.std) - 0.5 * math.log(2 * math.pi)).mean()
        assert float(part.logprobs[node]) == pytest.approx(float(density), abs=1e-5)


def test_a_task_is_a_pure_function_of_its_fields(tiny_policy: Policy, policy_settings: PolicySettings) -> None:
    worker = RolloutWorker(tiny_policy, RolloutSettings())
    list(worker.sample(Task(1, (0,), ("999",), SCHEDULE, 1)))
    torch.manual_seed(1)
    first = list(worker.sample(TASK))
    fresh = list(RolloutWorker(load_policy(policy_settings), RolloutSettings()).sample(TASK))
    for one, other in zip(first, fresh, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.latents, other.latents, strict=True))
        assert np.array_equal(one.media.pictures, other.media.pictures)


def test_a_task_for_other_weights_is_refused(tiny_policy: Policy) -> None:
    worker = RolloutWorker(tiny_policy, RolloutSettings())
    with pytest.raises(ValueError, match="weights version 2; this worker has 0"):
        worker.sample(Task(1, (0,), ("1",), SCHEDULE, 0, weights_version=2))


def test_siblings_are_equal_with_spread_zero_alone(tiny_policy: Policy, sample: Callable[..., list[Tree]]) -> None:
    for spread, equal in ((0.0, True), (4.0, False), (math.inf, False)):
        schedule = tree_schedule(3, kernel="dance", eta=0.5, splits={0: 2}, sibling_spread=spread)
        (tree,) = sample(tiny_policy, schedule, prompts=("1",))
        assert torch.equal(tree.state(1), tree.state(2)) == equal


@pytest.mark.parametrize("splits", [{}, {0: 2, 2: 3}])
def test_fast_deterministic_steps_are_diffusers_dpm_solver(tiny_policy: Policy, sample, splits: dict[int, int]) -> None:
    """From the state in which a stretch begins to the leaf: the solver of diffusers, over the same noise levels."""
    schedule = tree_schedule(12, kernel="dance", eta=0.5, splits=splits, sde_steps=list(splits), ode_stride=2)
    (tree,) = sample(tiny_policy, schedule, prompts=("1",))
    conditioning = {name: value[None] for name, value in tiny_policy.encode("1").items()}
    start = max(splits, default=-1) + 1
    begin = list(schedule.levels).index(start)
    sigmas = torch.tensor(tiny_policy.sigmas(12))[schedule.levels[begin:]]
    solver = DPMSolverMultistepScheduler(
        solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type="zero"
    )
    solver.set_timesteps(len(sigmas) - 1)
    solver.sigmas = sigmas
    leaf = schedule.nodes - 1
    chain = [leaf]
    while schedule.depth[chain[-1]] > begin:
        chain.append(int(schedule.parent[chain[-1]]))
    x = tree.state(chain[-1])[None]
    assert len(sigmas) - 1 == len(chain) - 1 >= 5
    for i, timestep in enumerate(solver.timesteps):
        with torch.no_grad():
            velocity = tiny_policy.velocity(x, sigmas[i : i + 1], conditioning)
        x = solver.step(velocity, timestep, x).prev_sample
        torch.testing.assert_close(tree.state(chain[-2 - i]), x[0], atol=2e-5, rtol=1e-5)
