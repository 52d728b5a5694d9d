"""From prompts to trees: one batched forward pass per depth, one row per parent state.

All trees of a task grow together, breadth first. Where the frontier outgrows the batch limit it is cut into chunks
that are finished one after the other, depth first, so that the first leaves are handed out while others have not
started. Neither the noise nor the numbering of nodes depends on the cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import torch

from ..proto.errors import Diverged
from ..proto.media import Media
from ..proto.packed_tensor import ForwardCache, KeptForward
from ..proto.schedule import IntArray
from ..proto.settings import RolloutSettings
from ..proto.tracing import span
from ..proto.tree import Conditioning, SampledPart, Task, Thumbnail
from ..proto.usage import on_gpu
from . import metrics
from .diversity import Diversity
from .kernels import CoefficientTable, state_std
from .noise import Stream, antithetic_sources, gaussian, sibling_noise
from .policies.base import Network, Policy, collate
from .policies.decoded import Decoded
from .thumbnails import playable, split_nodes, thumbnails


def expand(
    policy: Policy,
    task: Task,
    conditionings: list[Conditioning],
    settings: RolloutSettings,
    kept_forwards: ForwardCache | None = None,
    network: Network | None = None,
) -> Iterator[SampledPart]:
    """Sample the trees of `task`; each part is handed out as soon as its leaves are finished.

    `conditionings` holds one entry per tree. The parts of a tree together hold each of its nodes once. Forward passes
    whose rows are trained are put into `kept_forwards`, if it is given. `network` takes the place of the policy's own.
    """
    growth = _Growth(policy, task, conditionings, settings, kept_forwards, network)
    return growth.grow(growth.start())


@dataclass(frozen=True)
class _Frontier:
    """States of one depth, of one or several trees, ordered by tree and node."""

    depth: int
    tree: IntArray
    """Position of each state's tree in the task, int64 [n]."""
    index: IntArray
    """Position of each state within its depth of its tree, int64 [n]."""
    states: torch.Tensor
    """[n, *latent_shape], in the storage dtype."""
    clean: torch.Tensor | None = None
    """Clean states that were predicted one step before, float32 [n, *latent_shape], for a multistep solver."""

    def part(self, begin: int, end: int) -> "_Frontier":
        clean = None if self.clean is None else self.clean[begin:end]
        return _Frontier(self.depth, self.tree[begin:end], self.index[begin:end], self.states[begin:end], clean)


@dataclass
class _UnsentNodes:
    """Nodes of one tree that have been computed and not yet handed out."""

    nodes: list[IntArray] = field(default_factory=list)
    logprobs: list[torch.Tensor] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)
    thumbnails: dict[int, Thumbnail] = field(default_factory=dict)


class _Growth:
    """The expansion of one task's trees."""

    def __init__(
        self,
        policy: Policy,
        task: Task,
        conditionings: list[Conditioning],
        settings: RolloutSettings,
        kept_forwards: ForwardCache | None,
        network: Network | None,
    ) -> None:
        self.policy, self.schedule, self.task, self.settings = policy, task.schedule, task, settings
        self.kept_forwards, self.network = kept_forwards, network
        self.transitions = CoefficientTable.of(task.schedule, policy.sigmas(task.schedule.grid_steps))
        self.storage = getattr(torch, settings.latents_precision)
        self.conditionings = conditionings
        self.batched_conditioning = collate(conditionings, policy.device)
        self.pending = [_UnsentNodes() for _ in task.trees]
        self.first_part = [True] * len(task.trees)
        self.diversity = [Diversity() for _ in task.trees]

    def start(self) -> _Frontier:
        """The roots of all trees."""
        trees, roots = len(self.task.trees), self.schedule.roots
        tree, index = np.repeat(np.arange(trees), roots), np.tile(np.arange(roots), trees)
        noise = state_std(float(self.transitions.sigma[0])) * self._start_noise(tree, index)
        frontier = _Frontier(0, tree, index, noise.to(self.storage))
        self._note(frontier, torch.zeros(len(tree)))
        return frontier

    def grow(self, frontier: _Frontier) -> Iterator[SampledPart]:
        limit = self.settings.max_batch_rows
        while frontier.depth < len(self.schedule.steps):
            if (rows := len(frontier.states)) > limit:
                for begin in range(0, rows, limit):
                    yield from self.grow(frontier.part(begin, begin + limit))
                return
            with span("forward", rows=rows, depth=frontier.depth, iteration=self.task.iteration):
                frontier = self._step(frontier)
        yield from self._finish(frontier)

    @torch.no_grad()
    def _step(self, parents: _Frontier) -> _Frontier:
        """One forward pass over `parents` and the draw of their children."""
        depth, step = parents.depth, self.schedule.steps[parents.depth]
        rows = torch.as_tensor(parents.tree, device=self.policy.device)
        sigma = self.transitions.sigma[depth].to(self.policy.device)
        cache = self.kept_forwards if step.trained else None
        with torch.set_grad_enabled(cache is not None), on_gpu(self.policy.device):
            velocity = self.policy.velocity(
                parents.states,
                sigma.expand(len(rows)),
                {name: values[rows] for name, values in self.batched_conditioning.items()},
                self.network,
            )
        if cache is not None:
            nodes = self.schedule.first_node[depth] + parents.index
            cache.put(KeptForward(np.array(self.task.trees)[parents.tree], nodes, velocity))
            velocity = velocity.detach()
        if self.task.iteration:  # evaluations aren't counted
            metrics.FORWARD_PASSES.inc(len(rows))
            metrics.FORWARD_ROWS.observe(len(rows))
        mean = self.transitions.mean(depth, parents.states, velocity)
        if parents.clean is not None:
            mean += self.transitions.c[depth].to(mean.device) * parents.clean
        remembers = depth + 1 < len(self.schedule.steps) and bool(self.transitions.c[depth + 1])
        clean = parents.states.float() - sigma * velocity.float() if remembers else None
        if step.children > 1 and self.task.previews:
            self._preview(parents, sigma, velocity)
        mean = mean.repeat_interleave(step.children, dim=0)
        tree = np.repeat(parents.tree, step.children)
        index = (parents.index[:, None] * step.children + np.arange(step.children)).ravel()
        if step.stochastic:
            noise = self._noise(depth + 1, tree, index, Stream.OWN)
            if step.children > 1:
                shared = self._noise(depth, parents.tree, parents.index, Stream.SHARED)
                shared = shared.repeat_interleave(step.children, dim=0)
                noise = sibling_noise(shared, noise, self.schedule.sibling_spread)
            states = (mean + self.transitions.std[depth].to(mean.device) * noise).to(self.storage)
            logprobs = self.transitions.logprob(depth, states, mean).cpu()
        else:
            states, logprobs = mean.to(self.storage), torch.zeros(len(mean))
        children = _Frontier(depth + 1, tree, index, states, clean)
        self._note(children, logprobs)
        # These are on the host anyway; what a deterministic step breaks is seen at the next one with noise, or the end.
        self._check(tree, torch.isfinite(logprobs), "a log-probability")
        return children

    def _preview(self, splits: _Frontier, sigma: torch.Tensor, velocity: torch.Tensor) -> None:
        """Make thumbnails of the clean states predicted at the splits of recorded trees."""
        recorded = int((np.array(self.task.trees)[splits.tree] < self.task.recorded).sum())  # they come first
        if not recorded:
            return
        with span("preview", splits=recorded):
            clean = (splits.states[:recorded].float() - sigma * velocity[:recorded].float()).to(self.storage)
            self._add_thumbnails(splits.part(0, recorded), self._decode(clean).filled().media())

    def _add_thumbnails(self, frontier: _Frontier, media: Media) -> None:
        """Keep thumbnails of those nodes of a frontier whose trees are recorded, until they are handed out. Leaves with
        sound play, unless they are kept as samples."""
        heard = frontier.depth == len(self.schedule.steps) and media.sound is not None
        nodes = (self.schedule.first_node[frontier.depth] + frontier.index).tolist()
        for tree, begin, end in _runs(frontier.tree):
            number, own = self.task.trees[tree], media[begin:end]
            if number < self.task.recorded:
                pictures = thumbnails(own.looks(), self.schedule.leaves + len(split_nodes(self.schedule)))
                plays = playable(own, self.schedule.leaves) if heard and number >= self.task.sampled else repeat(b"")
                self.pending[tree].thumbnails.update(
                    zip(nodes[begin:end], map(Thumbnail, pictures, plays), strict=True)
                )

    def _decode(self, states: torch.Tensor) -> Decoded:
        with on_gpu(self.policy.device):
            parts = states.split(self.settings.decode_batch)
            return Decoded.joined([Decoded.of(self.policy.decode(part)) for part in parts])

    def _start_noise(self, tree: IntArray, index: IntArray) -> torch.Tensor:
        """Starting noise of the roots at `index` of trees, float32 [n, *latent_shape]."""
        if self.schedule.root_noise == "independent":
            return self._noise(0, tree, index, Stream.START)
        sources, signs = antithetic_sources(index)
        noise = self._noise(0, tree, sources, Stream.START)
        return noise * torch.as_tensor(signs, device=noise.device).reshape(-1, *[1] * (noise.ndim - 1))

    def _noise(self, depth: int, trees: IntArray, indices: IntArray, stream: Stream) -> torch.Tensor:
        """Noise of the nodes at `indices` within `depth` of `trees`, float32 [n, *latent_shape]."""
        first = self.schedule.first_node[depth]
        task, shape = self.task, self.policy.latent_shape
        seed = task.seed if task.start_seed is None or stream != Stream.START else task.start_seed
        drawn = [
            gaussian(seed, task.iteration, task.trees[tree], first + int(index), stream, shape)
            for tree, index in zip(trees, indices, strict=True)
        ]
        return torch.stack(drawn).to(self.policy.device)

    def _note(self, frontier: _Frontier, logprobs: torch.Tensor) -> None:
        """Keep new nodes until the next part of their tree is handed out."""
        nodes = self.schedule.first_node[frontier.depth] + frontier.index
        for tree, begin, end in _runs(frontier.tree):
            pending = self.pending[tree]
            pending.nodes.append(nodes[begin:end])
            pending.logprobs.append(logprobs[begin:end])
            pending.latents.extend(frontier.states[begin:end].unbind())

    def _check(self, tree: IntArray, finite: torch.Tensor, what: str) -> None:
        """Raises Diverged unless all are `finite`, bool [n], of nodes of the trees at `tree`."""
        if finite.all():
            return
        broken = int(tree[int(finite.logical_not().nonzero()[0, 0])])
        task, schedule, pending = self.task, self.schedule, self.pending[broken]
        states = zip(np.concatenate(pending.nodes), pending.latents, strict=True)
        first = min((int(node) for node, state in states if not torch.isfinite(state).all()), default=None)
        if first is not None:
            depth = int(schedule.depth[first])
            what = "the start" if depth == 0 else f"the state after step {schedule.levels[depth] - 1}"
        number = task.trees[broken]
        where = (
            f"tree {number} of iteration {task.iteration}" if task.iteration else f"picture {number} of an evaluation"
        )
        embedding = self.conditionings[broken].values()
        also = "" if all(torch.isfinite(value).all() for value in embedding) else ", nor is the prompt's embedding"
        error = Diverged(f"{what} of {where} isn't finite{also} (prompt '{task.prompts[broken][:80]}')")
        error.weights = task.weights_version
        raise error

    @torch.no_grad()
    def _finish(self, leaves: _Frontier) -> Iterator[SampledPart]:
        """Decode those leaves that somebody looks at, and hand out all that is pending of their trees."""
        self._check(leaves.tree, torch.isfinite(leaves.states).flatten(1).all(dim=1).cpu(), "a leaf")
        media = self._media(leaves)
        numbers = self.schedule.first_node[-2] + leaves.index
        for tree, begin, end in _runs(leaves.tree):
            pending, self.pending[tree] = self.pending[tree], _UnsentNodes()
            diversity = self.diversity[tree]
            if media[tree].kind != "latent":
                diversity.add(media[tree].looks())
            nodes = np.concatenate(pending.nodes)
            order = np.argsort(nodes)
            yield SampledPart(
                tree=self.task.trees[tree],
                nodes=nodes[order],
                logprobs=torch.cat(pending.logprobs)[torch.as_tensor(order)],
                latents=[pending.latents[i] for i in order],
                leaves=numbers[begin:end],
                media=media[tree],
                conditioning=self.conditionings[tree] if self.first_part[tree] else None,
                diversity=diversity.value() if diversity.pictures == self.schedule.leaves else None,
                thumbnails=pending.thumbnails,
            )
            self.first_part[tree] = False

    def _media(self, leaves: _Frontier) -> dict[int, Media]:
        """What is handed out of the leaves of each tree: media, latents or both, as the task asks for."""
        task = self.task
        seen = sum(task.decoded is None or task.trees[tree] < task.decoded for tree in leaves.tree)  # they come first
        decoded = self._decoded(leaves.part(0, seen)) if seen else None
        media = {}
        for tree, begin, end in _runs(leaves.tree):
            own = decoded[begin:end] if decoded is not None and begin < seen else None
            if task.latents:
                latents = leaves.states[begin:end].float().cpu().numpy()
                own = own.with_latents(latents) if own else Media(latents=latents)
            assert own  # whoever isn't given media is given latents
            media[tree] = own
        return media

    def _decoded(self, leaves: _Frontier) -> Media:
        """Decoded leaves, of which thumbnails are kept where their trees are recorded."""
        with span("decode", leaves=len(leaves.states)):
            decoded = self._decode(leaves.states)
            self._check(leaves.tree, decoded.finite(), "a decoded leaf")
            media = decoded.media()
        if self.task.iteration:  # evaluations aren't counted
            metrics.LEAVES_DECODED.inc(len(media))
        self._add_thumbnails(leaves, media)
        return media


def _runs(values: IntArray) -> Iterator[tuple[int, int, int]]:
    """(value, begin, end) of each run of equal values in a sorted array."""
    distinct, begins = np.unique(values, return_index=True)
    ends = [*begins[1:], len(values)]
    return zip(distinct.tolist(), begins.tolist(), ends, strict=True)
