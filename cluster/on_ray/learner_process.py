"""The work of a learner rank on Ray: windows of trees are fetched and learned from, weights packed for publishing."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ...learner import metrics
from ...learner.deepspeed_setup import join_ranks
from ...learner.export import save_weights
from ...learner.learner import Learner
from ...learner.partitioned import builder
from ...proto.checkpoint_files import PREVIOUS
from ...proto.packed_tensor import PackedTensor
from ...proto.remote_tree import RemoteTree
from ...proto.tracing import span
from ...proto.tree import Window
from ...proto.update_stats import UpdateStats
from ...proto.usage import NOTHING, Stopwatch, Usage, export
from ...rollout_workers.policies.base import cut_prompts
from ...rollout_workers.policies.load import find_device, load_policy
from ..plan.utilisation import note_device
from .broadcast import Weights, cut, read
from .fetched_states import FetchedStates
from .messages import Launch, NewVersion, WeightsRef


class LearnerProcess:
    """A learner rank. All ranks get the same calls."""

    network_only = True
    """Whether the process needs no autoencoder and no text encoders."""

    def __init__(self, launch: Launch, meeting: tuple[str, int] | None, store: Any) -> None:
        """Joins the other ranks at `meeting`, if there are any, and loads; rank 0 has opened the `store` there."""
        torch.set_num_threads(launch.threads)
        export("learning", "publishing")
        settings, self.rank = launch.settings, launch.rank
        device = find_device(settings.policy)
        os.environ["DS_ACCELERATOR"] = device.type
        if meeting:
            store = store or TCPStore(*meeting, launch.ranks, False)
            join_ranks(store, device, rank=launch.rank, ranks=launch.ranks)
        build = builder(settings.learner, settings.policy.precision, device)
        policy = load_policy(settings.policy, network_only=self.network_only, build=build)
        self.learner = Learner(policy, settings)
        self._states = FetchedStates(settings, launch.rank, launch.ranks)
        metrics.note_settings(settings.learner)
        note_device(device, settings.policy.precision)

    def fetch_ahead(self, window: Window[RemoteTree[Any]]) -> None:
        """Bring the states that this rank needs of the next window to its node. Called in another thread, while this
        one learns."""
        with span("fetch ahead", **_attributes(window)):
            self._states.fetch(window)

    def accumulate(self, window: Window[RemoteTree[Any]]) -> tuple[UpdateStats | None, Usage]:
        """Add the gradients of a window of scored trees, and make the optimizer step if the window ends an update.

        Returns the figures of that update, and what the call has cost.
        """
        watch = Stopwatch("learning")
        with span("learn", **_attributes(window)):
            start = time.perf_counter()
            trees = self._states.take(window)
            metrics.FETCHING_SECONDS.inc(time.perf_counter() - start)
            self.learner.accumulate(trees)
            stats = self.learner.step() if window.closes_update else None
        usage = watch.lap()
        metrics.LEARNING_SECONDS.inc(usage.seconds)
        return stats, usage

    def publish(self) -> Iterator[NewVersion | Weights]:
        """Make a new version. Gives its name and what the call has cost and then, on rank 0, its pieces."""
        watch = Stopwatch("publishing")
        with span("publish", version=self.learner.version + 1):
            self.learner.publish()
            pieces = self.pieces()
        yield from _given(NewVersion(self.learner.version, len(pieces), watch.lap()), pieces)

    def weights(self) -> Iterator[NewVersion | Weights]:
        """The current version, as `publish` gives one."""
        pieces = self.pieces()
        yield from _given(NewVersion(self.learner.version, len(pieces), NOTHING), pieces)

    def previous(self, folder: Path) -> Iterator[NewVersion | Weights]:
        """The version before a checkpoint's, as `publish` gives one."""
        pieces = [] if self.rank else _packed(safetensors.torch.load_file(folder / PREVIOUS))
        yield from _given(NewVersion(self.learner.version - 1, len(pieces), NOTHING), pieces)

    def pieces(self) -> list[Weights]:
        """The current weights in pieces, on rank 0. Collective."""
        weights = self.learner.weights()
        return [] if self.rank else _packed(weights)

    def save(self, folder: Path, previous: WeightsRef | None) -> None:
        """Write a checkpoint into `folder`, and with it the weights of the version before."""
        self.learner.save(folder)
        if previous and self.rank == 0:
            save_weights(folder / PREVIOUS, {name: value.tensor() for name, value in read(previous).items()})

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint. Raises InputError if it holds other weights than are trained."""
        self.learner.load(folder)
        self._states.forget()

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts among `prompts` that the policy cuts because they are too long."""
        return cut_prompts(self.learner.policy, prompts)


def _packed(weights: dict[str, torch.Tensor]) -> list[Weights]:
    return cut({name: PackedTensor.of(value) for name, value in weights.items()})


def _given(version: NewVersion, pieces: Sequence[Weights]) -> Iterator[NewVersion | Weights]:
    yield version
    yield from (piece for piece in pieces)  # Ray sends into its generators, which a list doesn't take


def _attributes(window: Window[RemoteTree[Any]]) -> dict[str, Any]:
    """What a window's spans say of it."""
    return {"iteration": window.iteration, "trees": [tree.number for tree in window.trees]}
