"""The learner: gets scored trees, makes updates, publishes weights."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..proto.checkpoint_files import EMA, LEARNER, OLD, WEIGHTS
from ..proto.errors import Diverged, InputError
from ..proto.packed_tensor import ForwardCache
from ..proto.schedule import Schedule
from ..proto.settings import RunSettings
from ..proto.tracing import span
from ..proto.tree import Conditioning, Tree, Window
from ..proto.update_stats import UpdateStats
from ..proto.usage import on_gpu
from ..rollout_workers.kernels import CoefficientTable, relative_noise
from ..rollout_workers.policies.base import Policy, add_adapters
from . import metrics
from .credit import Credit, credit_of
from .ema import WeightAverage
from .engine import Engine
from .export import export, save_weights
from .leaf_objectives import leaf_objective
from .leaf_rows import leaf_rows, noised_batches
from .objective import kl_divergence, kl_weights, means_logprobs, predicted_means
from .old_policy import OldPolicy
from .reference import Reference
from .rows import MicroBatch, Row, assemble, micro_batches, pick_rows
from .tree_notes import TreeNotes
from .trust_region import edge_objective


@dataclass
class _Update:
    """An update whose gradients are being added up."""

    iteration: int = 0
    first: bool = False
    """Whether it is the first pass of its iteration's first update, the one with tree 0."""
    turn: int = 0
    """Which pass over its trees it is."""
    stats: UpdateStats = field(default_factory=UpdateStats)
    clipped: list[torch.Tensor] = field(default_factory=list)
    """Number of clipped edges (or leaves) of each micro-batch, on the device."""
    differences: list[torch.Tensor] = field(default_factory=list)
    """Maximum difference of each micro-batch's log-probabilities above and below the sampler's, float32 [2]."""
    strayed: list[torch.Tensor] = field(default_factory=list)
    """Sum over each micro-batch's edges of |log ratio|, on the device."""
    divergences: list[torch.Tensor] = field(default_factory=list)
    """Each micro-batch's share of the trees' KL to the reference policy."""
    notes: TreeNotes = field(default_factory=TreeNotes)


class Learner:
    """Trains `policy.network` in place.

    `accumulate` gets the scored trees of an update, window by window; then `step` makes the optimizer step; `publish`
    makes a new version of the weights. Micro-batches are composed from the trees of one window.

    With several ranks, each has a Learner of its own in a process of its own, and all get the same calls: each works on
    its share of the rows.
    """

    def __init__(self, policy: Policy, settings: RunSettings) -> None:
        self.settings, self.policy = settings, policy
        self.kept_forwards = ForwardCache() if settings.learner.keep_graph else None
        """Forward passes of this process' own rollouts, which take the place of the learner's."""
        self.version = 0
        self.pace = 1.0
        """What the settings' learning rate is multiplied by: below 1 after a fall was undone."""
        if settings.learner.lora:
            add_adapters(policy, settings.learner.lora, settings.seed)
        self.reference = Reference(policy, settings) if settings.learner.kl_weight else None
        if settings.learner.gradient_checkpointing:
            policy.checkpoint_gradients()
        updates = settings.iterations * settings.learner.updates_per_iteration
        self.engine = Engine(policy.network, settings.learner, settings.policy.precision, updates)
        decay = settings.learner.ema_decay
        self.average = None if decay is None else WeightAverage(decay, self.engine.master_weights())
        self.old: OldPolicy | None = None
        """The policy that rollouts sample with, where it isn't always the trained one at an update."""
        if settings.learner.has_old_policy:
            self.old = OldPolicy(policy, settings.learner.nft, self.engine.weights())
        self._begun = 0
        """Updates that were begun since the newest version."""
        self._update = _Update()
        self._windows: list[Window[Tree]] = []
        """Windows of the present update; kept only if an update makes several passes over them."""

    def accumulate(self, window: Window[Tree]) -> None:
        """Forward and backward for the trees of a window, whose gradients are added to those of the present update.

        Raises ValueError for a tree with scores missing, or more trees than the update takes.
        """
        update, trees, whole = self._update, window.trees, self.settings.trees_per_update
        if update.stats.trees + len(trees) > whole:
            raise ValueError(f"an update takes {whole} trees; got {update.stats.trees + len(trees)}")
        if self.settings.learner.passes > 1:
            self._windows.append(window)
        update.first = update.first or trees[0].number == 0
        self._accumulate(window)

    def _accumulate(self, window: Window[Tree]) -> None:
        if not self._update.stats.trees:
            self._update.notes = TreeNotes(below=self.settings.logging.recorded_trees(window.iteration))
        self._update.iteration = window.iteration
        self._update.stats.trees += len(window.trees)
        if self.settings.learner.learns_from_leaves:
            self._accumulate_leaves(window)
        else:
            self._accumulate_edges(window)

    def _accumulate_edges(self, window: Window[Tree]) -> None:
        trees, schedule = window.trees, window.trees[0].schedule
        sigmas = self.policy.sigmas(schedule.grid_steps)
        transitions, noise = CoefficientTable.of(schedule, sigmas), relative_noise(schedule, sigmas)
        credits = [credit_of(tree, self.settings, window.iteration, noise) for tree in trees]
        # With a KL term, edges without an advantage have a gradient too.
        skips = self.settings.learner.skip_zero_advantage and not self.reference
        rows = pick_rows(trees, credits, skip_zero_advantage=skips)
        self._update.notes.edges(trees, credits, rows, self.policy.sigmas)
        computed = self._computed if self.kept_forwards is None else self._kept
        for batch, means in computed(rows, trees, credits, transitions):
            self._backward(schedule, transitions, batch, means)
        stats, edges = self._update.stats, sum(len(row.children) for row in rows)
        unpruned = sum(int((credit.weights > 0).sum()) for credit in credits)
        stats.note_pulls(credit.pulls for credit in credits)
        stats.rows += len(rows)
        stats.reference_rows += len(rows) if self.reference else 0
        stats.edges += edges
        stats.skipped_edges += unpruned - edges
        stats.pruned_edges += sum(tree.schedule.trained_edges for tree in trees if not tree.left_out) - unpruned

    def _accumulate_leaves(self, window: Window[Tree]) -> None:
        settings, trees = self.settings, window.trees
        # An iteration's first update starts from the policy that sampled, unless that is an average.
        old = self.old if settings.learner.nft.old_decay or not self._update.first else None
        levels = settings.learner.nft.noise_levels
        skip = settings.learner.skip_zero_advantage
        credits = [credit_of(tree, self.settings, window.iteration) for tree in trees]
        rows = leaf_rows(trees, credits, settings.advantage.clip, levels, skip=skip, turn=self._update.turn)
        self._update.notes.leaves(trees, credits, rows, self.policy.sigmas)
        batches = noised_batches(rows, settings, window.iteration, rank=self.engine.rank, ranks=self.engine.ranks)
        for batch in batches:
            with span("forward and backward", rows=len(batch.states)), on_gpu(self.policy.device):
                batch = batch.to(self.policy.device)
                inputs = batch.states, batch.sigmas, batch.conditioning
                new = self._velocity(*inputs)
                sampler = old.velocity(*inputs) if old else new.detach()
                objective = leaf_objective(new, sampler, batch, settings.learner)
                self._update.clipped.append((objective.clipped & (batch.weights > 0)).sum())
                self._add_gradient(objective.loss, len(batch.states))
        self._update.stats.note_pulls(credit.pulls for credit in credits)
        self._update.stats.rows += len(rows)
        self._update.stats.reference_rows += len(rows) if old else 0
        self._update.stats.edges += len(rows)
        leaves = sum(tree.schedule.leaves for tree in trees if not tree.left_out)
        self._update.stats.skipped_edges += leaves * levels - len(rows)

    def step(self) -> UpdateStats:
        """Make the optimizer step of the trees that were given, and `learner.passes` of them altogether.

        An update whose edges all have zero advantage makes no step. Raises ValueError if trees are missing, and
        Diverged, on all ranks, if log-probabilities, gradient or weights aren't finite; this learner is of no use then.
        """
        if self._update.stats.trees != self.settings.trees_per_update:
            raise ValueError(f"an update takes {self.settings.trees_per_update} trees; got {self._update.stats.trees}")
        windows, self._windows = self._windows, []
        # By what is due, whatever an update made of its passes: each iteration has made a version.
        number = self.version * self.settings.learner.updates_per_iteration + self._begun
        rate, self._begun = self.pace * self.engine.learning_rate(number), self._begun + 1
        stats, strayed = self._step(rate)
        for turn in range(1, self.settings.learner.passes):
            if not stats.edges or strayed > (self.settings.learner.trust or math.inf):
                break
            self._update.turn = turn
            for window in windows:
                self._accumulate(window)
            further, strayed = self._step(rate)
            stats = stats.followed_by(further)
        return stats

    def _step(self, learning_rate: float) -> tuple[UpdateStats, float]:
        """Make the optimizer step of one pass. Returns its figures, and if it is bounded the mean |log ratio|."""
        update, self._update = self._update, _Update()
        stats, strayed = update.stats, 0.0
        stats.recorded = update.notes.taken()
        stats.learning_rate = learning_rate
        if stats.edges:
            stats.clip_fraction = self.engine.summed(torch.stack(update.clipped).sum()) / stats.edges
            if not self.settings.learner.learns_from_leaves:
                self._note_ratios(update)
                if self.settings.learner.trust is not None:
                    strayed = self.engine.summed(torch.stack(update.strayed).sum()) / stats.edges
            if self.reference:
                stats.kl = self.engine.summed(torch.stack(update.divergences).sum()) / stats.trees
            with span("optimizer step"), on_gpu(self.policy.device):
                try:
                    stats.gradient_norm = self.engine.step(learning_rate)
                except FloatingPointError as error:
                    raise Diverged(f"in iteration {update.iteration} {error}") from error
                if self.average:
                    self.average.update(self.engine.master_weights())
        if self.engine.rank == 0:
            # Trees that were sampled ahead had older weights, and differ as they should.
            same = update.first and (self.settings.staleness == 0 or update.iteration == 1)
            metrics.note_update(stats, same_weights=same)
        if self.policy.device.type == "cuda":
            metrics.DEVICE_MEMORY.set(torch.cuda.max_memory_allocated(self.policy.device))
        return stats, strayed

    def _note_ratios(self, update: _Update) -> None:
        stats = update.stats
        differences = self.engine.largest(torch.stack(update.differences).amax(dim=0))
        if not torch.isfinite(differences).all():
            raise Diverged(f"a log-probability that the learner computed in iteration {update.iteration} isn't finite")
        stats.logprob_abs_diff = float(differences.max().abs())
        stats.ratio_max, stats.ratio_min = differences[0].exp().item(), (-differences[1]).exp().item()

    def publish(self) -> int:
        """Make the current weights a new version, and return its number."""
        if self.old:
            self.old.renew(self.engine.weights())
        self.version, self._begun = self.version + 1, 0
        metrics.WEIGHTS_VERSION.set(self.version)
        return self.version

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights to sample with by name; with LoRA, of the adapters only. Collective."""
        return dict(self.old.weights) if self.old else self.engine.weights()

    def export(self, folder: Path) -> None:
        """Have rank 0 write the trained weights in diffusers' format: a transformer folder or a LoRA file. Collective.

        An earlier export in `folder` is replaced.
        """
        with self.engine.gathered(), self.old.in_place() if self.old else nullcontext():
            if self.engine.rank == 0:
                export(self.policy, folder, replace=True)

    def save(self, folder: Path) -> None:
        """Write a checkpoint into `folder`. The caller makes sure that the folder appears as a whole."""
        self.engine.save(folder)
        weights = self.weights()
        if self.engine.rank == 0:
            save_weights(folder / WEIGHTS, weights)
            if self.old:
                save_weights(folder / OLD, self.old.average.weights)
            if self.average:
                save_weights(folder / EMA, self.average.weights)
            facts = {"version": self.version, "pace": self.pace, "ranks": self.engine.ranks}
            (folder / LEARNER).write_text(json.dumps(facts))

    def load(self, folder: Path) -> None:
        """Load what `save` wrote, with any number of ranks and at any ZeRO stage, and continue as the settings say.

        An average that the checkpoint doesn't have begins with its weights. Raises InputError if it holds other weights
        than this learner trains.
        """
        facts = json.loads((folder / LEARNER).read_text())
        self._check_weights(folder / WEIGHTS)
        self.pace = facts.get("pace", 1.0)
        self.engine.load(folder, facts["ranks"])
        if self.average:
            file = folder / EMA
            if not file.is_file():
                self.average.load(self.engine.master_weights())
            elif self.engine.rank == 0:  # which alone holds the average
                self.average.load(safetensors.torch.load_file(file))
        if self.old:
            file = folder / OLD
            kept = self.settings.learner.nft.old_decay and file.is_file()
            self.old.load(safetensors.torch.load_file(file) if kept else self.engine.weights())
        self.version, self._begun = facts["version"], 0
        metrics.WEIGHTS_VERSION.set(self.version)

    def _check_weights(self, file: Path) -> None:
        trained = self.engine.shapes()
        with safetensors.safe_open(file, framework="pt") as weights:
            saved = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        if different := sorted(name for name in {**trained, **saved} if trained.get(name) != saved.get(name)):
            name = different[0]
            raise InputError(
                f"{file.parent} holds other weights than this policy trains ({len(different)} of {len(trained)}), such "
                f"as {name}: shape {saved.get(name)}, and {trained.get(name)} now"
            )

    def _computed(
        self, rows: Sequence[Row], trees: Sequence[Tree], credits: Sequence[Credit], transitions: CoefficientTable
    ) -> Iterator[tuple[MicroBatch, torch.Tensor]]:
        """This rank's share of `rows` in micro-batches, and the means of the states after each parent state."""
        batches = micro_batches(
            rows,
            trees,
            credits,
            rows=self.settings.learner.rows_per_micro_batch,
            rank=self.engine.rank,
            ranks=self.engine.ranks,
        )
        for batch in batches:
            with span("forward and backward", rows=len(batch.states)), on_gpu(self.policy.device):
                batch = batch.to(self.policy.device)
                yield batch, predicted_means(self._velocity, transitions, batch)

    def _kept(
        self, rows: Sequence[Row], trees: Sequence[Tree], credits: Sequence[Credit], transitions: CoefficientTable
    ) -> Iterator[tuple[MicroBatch, torch.Tensor]]:
        """What `_computed` gives, one micro-batch for each forward pass that the rollouts of `trees` have kept."""
        assert self.kept_forwards is not None
        row_of = {(trees[row.tree].number, row.parent): row for row in rows}
        for forward in self.kept_forwards.drain():
            parents = enumerate(zip(forward.trees.tolist(), forward.nodes.tolist(), strict=True))
            trained = {place: row_of[parent] for place, parent in parents if parent in row_of}
            if trained:
                with span("backward", rows=len(trained)), on_gpu(self.policy.device):
                    batch = assemble(list(trained.values()), trees, credits).to(self.policy.device)
                    velocity = forward.velocity[list(trained)]
                    yield batch, transitions.mean(batch.steps, batch.states, velocity)

    def _velocity(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return self.policy.velocity(latents, sigma, conditioning, self.engine.module)

    def _backward(
        self, schedule: Schedule, transitions: CoefficientTable, batch: MicroBatch, means: torch.Tensor
    ) -> None:
        """Backward pass of the objective, given the `means` of the states after each parent state."""
        logprobs = means_logprobs(transitions, batch, means)
        objective = edge_objective(self.settings, self._update.iteration, schedule, transitions, batch, means, logprobs)
        loss = objective.loss
        if self.reference:
            reference = predicted_means(self.reference.velocity, transitions, batch)
            divergences = kl_divergence(transitions, batch, means, reference)
            weights = kl_weights(transitions, batch, self.settings.learner.kl_scale)
            loss = loss + self.settings.learner.kl_weight * (weights * divergences).sum()
            self._update.divergences.append((batch.weights * divergences).sum().detach())
        self._add_gradient(loss, len(batch.states))
        self._update.clipped.append((objective.clipped & (batch.weights > 0)).sum())
        difference = logprobs.detach() - batch.logprobs
        self._update.differences.append(torch.stack([difference.max(), -difference.min()]))
        self._update.strayed.append((difference.abs() * (batch.weights > 0)).sum())
        self._update.notes.ratios(batch.edges, difference)

    def _add_gradient(self, loss: torch.Tensor, rows: int) -> None:
        """Backward pass of a micro-batch's share in the objective, which is a sum over the update's trees."""
        # The engine averages gradients over ranks.
        self.engine.backward(loss * self.engine.ranks / self.settings.trees_per_update)
        metrics.ROWS_TRAINED.inc(rows)
        metrics.MICRO_BATCH_ROWS.observe(rows)
