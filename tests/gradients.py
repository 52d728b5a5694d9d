"""One update of a learner, its gradient, and the same gradient by a loop over edges, from the papers' formulas."""

import math
from collections.abc import Callable

import numpy as np
import torch
from branchgrpo.learner.learner import Learner
from branchgrpo.learner.objective import means_logprobs, predicted_means
from branchgrpo.learner.rows import MicroBatch
from branchgrpo.proto.schedule import Kernel
from branchgrpo.proto.tree import Tree, Window
from branchgrpo.rollout_workers.kernels import CoefficientTable
from branchgrpo.rollout_workers.policies.base import Policy, collate, trainable
from deepspeed.utils import safe_get_full_optimizer_state
from torch.distributions import Normal, kl_divergence

Sample = Callable[..., list[Tree]]


def update(learner: Learner, trees: list[Tree]):
    learner.accumulate(Window(1, trees, closes_update=True))
    return learner.step()


def edge_logprobs(policy: Policy, transitions: CoefficientTable, batch: MicroBatch) -> torch.Tensor:
    """Log-probability of each edge under the policy's weights, float32 [E]."""
    return means_logprobs(transitions, batch, predicted_means(policy.velocity, transitions, batch))


def naive_mean(kernel: Kernel, eta: float, x: torch.Tensor, v: torch.Tensor, s: float, s_next: float, s_1: float):
    """Mean and deviation of the next state, from the formulas of DanceGRPO and Flow-GRPO."""
    ds = s_next - s
    if kernel == "dance":
        score = -(x - (1 - s) * (x - s * v)) / s**2
        return x + ds * v - 0.5 * eta**2 * score * ds, eta * math.sqrt(-ds)
    level = eta * math.sqrt(s / (1 - (s_1 if s == 1 else s)))
    mean = x * (1 + level**2 / (2 * s) * ds) + v * (1 + level**2 * (1 - s) / (2 * s)) * ds
    return mean, level * math.sqrt(-ds)


def guarded_gain(
    new: Normal, old: Normal, child: torch.Tensor, advantage: float, length: float, clip_range: float
) -> torch.Tensor:
    """GRPO-Guard's gain of an edge by the formula of its paper, from its transition's distributions, new and old."""
    log_ratio = (new.log_prob(child) - old.log_prob(child)).mean()
    bias = ((new.mean - old.mean) ** 2 / (2 * old.variance)).mean()
    ratio = torch.exp((log_ratio + bias) * old.stddev.flatten()[0])
    return torch.min(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage) / length


def masked_gain(
    new: Normal, old: Normal, child: torch.Tensor, advantage: float, length: float, limit: float
) -> torch.Tensor:
    """Flow-DPPO's gain of an edge by the formula of its paper, from its transition's distributions, new and old."""
    ratio = torch.exp((new.log_prob(child) - old.log_prob(child)).mean())
    strays = ratio > 1 if advantage > 0 else ratio < 1
    return 0 * ratio if strays and kl_divergence(old, new).mean() > limit else ratio * advantage


def naive_gradient(
    policy: Policy,
    trees: list[Tree],
    clip_range: float,
    reference=None,
    kl_weight: float = 0.0,
    kl_scale: str = "exact",
    gain_since: Callable[..., torch.Tensor] | None = None,
):
    """A loop over edges in plain torch, one forward and backward each, from the formulas of the kernels and GRPO.

    With `gain_since`, an edge's gain is that function of its transition now and at `reference`.
    """
    parameters = trainable(policy.network)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for tree in trees:
        schedule = tree.schedule
        grid = policy.sigmas(schedule.grid_steps)
        sigmas = [grid[level] for level in schedule.levels]
        ends = [[] for _ in range(schedule.nodes)]  # leaf rewards below each node
        for leaf, reward in zip(range(schedule.first_node[-2], schedule.nodes), tree.rewards["ocr"], strict=True):
            at = leaf
            while at >= 0:
                ends[at].append(reward)
                at = int(schedule.parent[at])
        values = [float(np.mean(below)) for below in ends]
        for node in range(schedule.roots, schedule.nodes):
            step = int(schedule.depth[node]) - 1
            if not schedule.steps[step].trained:
                continue
            peers = [values[i] for i in range(schedule.nodes) if schedule.depth[i] == step + 1]
            advantage = (values[node] - np.mean(peers)) / np.std(peers, ddof=1) if len(peers) > 1 else 0.0
            s, s_next = sigmas[step], sigmas[step + 1]
            x = tree.state(int(schedule.parent[node]))[None]
            conditioning = {name: value[None] for name, value in policy.encode(tree.prompt).items()}

            taken, level = schedule.steps[step], torch.tensor([s])
            v = policy.velocity(x, level, conditioning)
            mean, std = naive_mean(taken.kernel, taken.eta, x, v, s, s_next, grid[1])
            logprob = Normal(mean, std).log_prob(tree.state(node)[None]).mean()
            ratio = torch.exp(logprob - tree.logprobs[node])
            gain = torch.min(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)
            loss = -gain
            if reference is not None:
                with torch.no_grad():
                    v = reference.velocity(x, level, conditioning)
                held, _ = naive_mean(taken.kernel, taken.eta, x, v, s, s_next, grid[1])
                if gain_since is not None:
                    child = tree.state(node)[None]
                    loss = -gain_since(Normal(mean, std), Normal(held, std), child, advantage, s - s_next, clip_range)
                if kl_scale == "flow_grpo":  # its deviation has no factor sqrt(-ds)
                    std = std / math.sqrt(s - s_next)
                loss = loss + kl_weight * kl_divergence(Normal(mean, std), Normal(held, std)).mean()
            loss = loss / (schedule.trained_edges * len(trees))
            for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                total[name] += gradient
    return total


def first_moments(learner: Learner) -> dict[str, torch.Tensor]:
    """AdamW's first moments; after one step they are (1 - beta1) times the gradient, for every ZeRO stage."""
    parameters = learner.engine._parameters
    if learner.settings.learner.zero_stage == 0:
        return {name: learner.engine.module.optimizer.state[p]["exp_avg"] for name, p in parameters.items()}
    return {name: safe_get_full_optimizer_state(p, "exp_avg") for name, p in parameters.items()}


def assert_same_gradient(learner: Learner, expected: dict[str, torch.Tensor], tolerance: float) -> None:
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    assert scale > 0
    for name, moment in first_moments(learner).items():
        torch.testing.assert_close(moment / 0.1, expected[name], atol=tolerance * scale, rtol=tolerance)


def naive_ratio(policy: Policy, tree: Tree, node: int) -> float:
    """exp(new - old log-probability) of an edge by the kernel's formula, for `policy` alone."""
    parent, step = int(tree.schedule.parent[node]), int(tree.schedule.depth[node]) - 1
    grid = policy.sigmas(tree.schedule.grid_steps)
    x, s = tree.state(parent).float(), grid[step]
    with torch.no_grad():
        v = policy.velocity(x[None], torch.tensor([s]), collate([policy.encode(tree.prompt)]))[0]
    mean, std = naive_mean("dance", tree.schedule.steps[step].eta, x, v, s, grid[step + 1], grid[1])
    return float(torch.exp(Normal(mean, std).log_prob(tree.state(node).float()).mean() - tree.logprobs[node]))
