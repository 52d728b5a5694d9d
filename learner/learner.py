"""The learner: takes scored trees, makes updates, publishes weights."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from ..proto.errors import Diverged, InputError
from ..proto.packed_tensor import KeptForward
from ..proto.settings import RunSettings
from ..proto.tracing import span
from ..proto.tree import Conditioning, Tree
from ..proto.update_stats import UpdateStats
from ..rollout_workers.kernels import CoefficientTable, relative_noise
from ..rollout_workers.policies.base import Policy, add_adapters
from .credit import Credit, tree_credit
from .ema import WeightAverage
from .engine import Engine
from .export import export
from .objective import clipped_objective, kl_divergence, means_logprobs, predicted_means
from .reference import Reference
from .rows import MicroBatch, Row, assemble, micro_batches, pick_rows


@dataclass
class _Update:
    """An update that is being gathered."""

    window: list[Tree] = field(default_factory=list)
    stats: UpdateStats = field(default_factory=UpdateStats)
    clipped: list[torch.Tensor] = field(default_factory=list)
    """Of each micro-batch: number of clipped edges, on the device."""
    differences: list[torch.Tensor] = field(default_factory=list)
    """Of each micro-batch: by how much log-probabilities are above and below the sampler's, at most; float32 [2]."""
    divergences: list[torch.Tensor] = field(default_factory=list)
    """Of each micro-batch: its share of the trees' KL to the reference policy."""


class Learner:
    """Trains `policy.network` in place.

    `take` scored trees in order; when all trees of an update are in, `update` makes the optimizer step; `publish` gives
    a new version of the weights. Micro-batches are composed from windows of consecutive trees, so they depend on the
    order of the trees alone.

    With several ranks, each has a Learner of its own in a process of its own, and all get the same calls: each works on
    its share of the rows.
    """

    def __init__(
        self, policy: Policy, settings: RunSettings, observe: Callable[[int], None] = lambda rows: None
    ) -> None:
        """`observe` is told the rows of every micro-batch that this rank has worked on."""
        self.settings, self.policy, self.observe = settings, policy, observe
        self.kept: list[KeptForward] | None = [] if settings.learner.keep_graph else None
        """Forward passes of this process' own rollouts, which take the place of the learner's."""
        self.version = 0
        self.trees_per_update = settings.prompts.per_iteration // settings.learner.updates_per_iteration
        if settings.learner.lora:
            add_adapters(policy, settings.learner.lora, settings.seed)
        self.reference = Reference(policy, settings) if settings.learner.kl_weight else None
        if settings.learner.gradient_checkpointing:
            policy.checkpoint_gradients()
        updates = settings.iterations * settings.learner.updates_per_iteration
        self.engine = Engine(policy.network, settings.learner, settings.policy.precision, updates)
        decay = settings.learner.ema_decay
        self.average = None if decay is None else WeightAverage(decay, self.engine.master_weights())
        self._update = _Update()

    def take(self, tree: Tree) -> None:
        """Add a scored tree to the present update. Works through a window as soon as it is full.

        Raises ValueError for a tree with scores missing, or one more than the update takes.
        """
        if self._update.stats.trees == self.trees_per_update:
            raise ValueError(f"an update takes {self.trees_per_update} trees; one more was given")
        self._update.window.append(tree)
        self._update.stats.trees += 1
        if self.kept is None and len(self._update.window) == self.settings.learner.window_trees:
            self._work_through_window()

    def update(self) -> UpdateStats:
        """Make the optimizer step of the trees taken.

        An update whose edges all have zero advantage makes no step. Raises ValueError if trees are missing, and
        Diverged, on all ranks, if log-probabilities, gradient or weights aren't finite; this learner is of no use then.
        """
        if self._update.stats.trees != self.trees_per_update:
            raise ValueError(f"an update takes {self.trees_per_update} trees; got {self._update.stats.trees}")
        if self._update.window:
            self._work_through_window()
        update, self._update = self._update, _Update()
        stats = update.stats
        if stats.edges:
            stats.clip_fraction = self.engine.summed(torch.stack(update.clipped).sum()) / stats.edges
            differences = self.engine.largest(torch.stack(update.differences).amax(dim=0))
            if not torch.isfinite(differences).all():
                raise Diverged(
                    f"a log-probability that the learner computed in iteration {self.version + 1} isn't finite"
                )
            stats.logprob_abs_diff = float(differences.max().abs())
            stats.ratio_max, stats.ratio_min = differences[0].exp().item(), (-differences[1]).exp().item()
            if self.reference:
                stats.kl = self.engine.summed(torch.stack(update.divergences).sum()) / self.trees_per_update
            stats.learning_rate = self.engine.learning_rate
            with span("optimizer step"):
                try:
                    stats.gradient_norm = self.engine.step()
                except FloatingPointError as error:
                    raise Diverged(f"in iteration {self.version + 1} {error}") from error
                if self.average:
                    self.average.update(self.engine.master_weights())
        return stats

    def publish(self) -> tuple[dict[str, torch.Tensor], int]:
        """The trained weights (of adapters only, with LoRA) and their new version."""
        self.version += 1
        return self.weights(), self.version

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights of the present version, by name."""
        return self.engine.weights()

    def export(self, folder: Path) -> None:
        """Have rank 0 write what was trained in diffusers' format: a transformer folder or a LoRA file. Collective.

        An earlier export in `folder` is replaced.
        """
        with self.engine.gathered():
            if self.engine.rank == 0:
                export(self.policy, folder, replace=True)

    def save(self, folder: Path) -> None:
        """Write everything to go on from into `folder`; the caller sees to it that the folder appears as a whole."""
        self.engine.save(folder)
        weights = self.engine.weights()
        if self.engine.rank == 0:
            save_weights(folder / "weights.safetensors", weights)
            if self.average:
                save_weights(folder / "ema.safetensors", self.average.weights)
            facts = {"version": self.version, "ranks": self.engine.ranks}
            (folder / "learner.json").write_text(json.dumps(facts))

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote, with any number of ranks and at any ZeRO stage, and go on as the settings say.

        An average that the checkpoint doesn't have begins with its weights. Raises InputError if it holds other weights
        than this learner trains.
        """
        facts = json.loads((folder / "learner.json").read_text())
        self._check_weights(folder / "weights.safetensors")
        self.engine.load(folder, facts["ranks"])
        if self.average:
            kept = folder / "ema.safetensors"
            self.average.load(safetensors.torch.load_file(kept) if kept.is_file() else self.engine.master_weights())
        self.version = facts["version"]

    def _check_weights(self, file: Path) -> None:
        trained = self.engine.shapes()
        with safetensors.safe_open(file, framework="pt") as weights:
            kept = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        if different := sorted(name for name in {**trained, **kept} if trained.get(name) != kept.get(name)):
            name = different[0]
            raise InputError(
                f"{file.parent} holds other weights than this policy trains ({len(different)} of {len(trained)}), such "
                f"as {name}: shape {kept.get(name)}, and {trained.get(name)} now"
            )

    def _work_through_window(self) -> None:
        """Forward and backward for all micro-batches of the window."""
        trees, self._update.window = self._update.window, []
        schedule = trees[0].schedule
        sigmas = self.policy.sigmas(schedule.grid_steps)
        transitions, noise = CoefficientTable.of(schedule, sigmas), relative_noise(schedule, sigmas)
        credits = [self._credit(tree, noise) for tree in trees]
        if self.kept is None:
            rows = self._forward_and_backward(trees, credits, transitions)
        else:
            rows = self._backward_only(trees, credits, transitions)
        stats, edges = self._update.stats, sum(len(row.children) for row in rows)
        kept = sum(int((credit.weights > 0).sum()) for credit in credits)
        stats.rows += len(rows)
        stats.reference_rows += len(rows) if self.reference else 0
        stats.edges += edges
        stats.skipped_edges += kept - edges
        stats.pruned_edges += sum(tree.schedule.trained_edges for tree in trees if not tree.left_out) - kept

    def _forward_and_backward(
        self, trees: Sequence[Tree], credits: Sequence[Credit], transitions: CoefficientTable
    ) -> list[Row]:
        """Work on this rank's share of the rows that there are, and return them all."""
        rows = pick_rows(trees, credits, skip_zero_advantage=self._skips)
        batches = micro_batches(
            rows,
            trees,
            credits,
            rows=self.settings.learner.rows_per_micro_batch,
            rank=self.engine.rank,
            ranks=self.engine.ranks,
        )
        for batch in batches:
            with span("forward and backward", rows=len(batch.states)):
                batch = batch.to(self.policy.device)
                self._backward(transitions, batch, predicted_means(self._velocity, transitions, batch))
        return rows

    def _backward_only(
        self, trees: Sequence[Tree], credits: Sequence[Credit], transitions: CoefficientTable
    ) -> list[Row]:
        """The backward passes of the forward passes that the rollouts of `trees` have left; returns their rows."""
        assert self.kept is not None
        own = {tree.number: i for i, tree in enumerate(trees)}
        every = pick_rows(trees, credits, skip_zero_advantage=self._skips)
        by_parent = {(row.tree, row.parent): row for row in every}
        while self.kept:
            forward = self.kept.pop()
            pairs = enumerate(zip(forward.trees, forward.nodes, strict=True))
            places = {i: by_parent.get((own[int(tree)], int(node))) for i, (tree, node) in pairs}
            picked = {i: row for i, row in places.items() if row}
            if picked:
                with span("backward", rows=len(picked)):
                    batch = assemble(list(picked.values()), trees, credits).to(self.policy.device)
                    velocity = forward.velocity[list(picked)]
                    self._backward(transitions, batch, transitions.mean(batch.steps, batch.states, velocity))
        return every

    @property
    def _skips(self) -> bool:
        """Whether edges without an advantage are left out. With a KL term they have a gradient too."""
        return self.settings.learner.skip_zero_advantage and not self.reference

    def _credit(self, tree: Tree, noise: Sequence[float]) -> Credit:
        settings = self.settings
        if tree.left_out:
            return Credit(np.zeros(tree.schedule.nodes), np.zeros(tree.schedule.nodes))
        rewards = {name: reward.weight for name, reward in settings.training_rewards.items()}
        iteration = self.version + 1  # every iteration ends with a new version
        return tree_credit(tree, rewards, settings.advantage, settings.pruning, iteration, noise)

    def _velocity(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return self.policy.velocity(latents, sigma, conditioning, self.engine.module)

    def _backward(self, transitions: CoefficientTable, batch: MicroBatch, means: torch.Tensor) -> None:
        """Backward pass of the objective, given the `means` of the states after each parent state."""
        logprobs = means_logprobs(transitions, batch, means)
        objective = clipped_objective(
            logprobs, batch.logprobs, batch.advantages, batch.weights, self.settings.learner.clip_range
        )
        loss = objective.loss
        if self.reference:
            reference = predicted_means(self.reference.velocity, transitions, batch)
            divergence = (batch.weights * kl_divergence(transitions, batch, means, reference)).sum()
            loss = loss + self.settings.learner.kl_weight * divergence
            self._update.divergences.append(divergence.detach())
        # The engine averages gradients over ranks; the objective is a sum.
        self.engine.backward(loss * self.engine.ranks / self.trees_per_update)
        self.observe(len(batch.states))
        self._update.clipped.append((objective.clipped & (batch.weights > 0)).sum())
        difference = logprobs.detach() - batch.logprobs
        self._update.differences.append(torch.stack([difference.max(), -difference.min()]))


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Weights as one safetensors file."""
    safetensors.torch.save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, path)
