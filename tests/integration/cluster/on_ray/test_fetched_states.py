"""What a learner rank fetches equals what was sampled."""

from typing import Any

import numpy as np
import ray
import torch
from branchgrpo.cluster.on_ray.connect import connected
from branchgrpo.cluster.on_ray.fetched_states import FetchedStates
from branchgrpo.proto.remote_tree import PartHeader, RemoteTree, states_of
from branchgrpo.proto.settings import RunSettings
from branchgrpo.proto.tree import SampledPart, Task, Window
from branchgrpo.rollout_workers.policies.base import Policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from support import Settings


def remote(settings: RunSettings, parts: list[SampledPart], iteration: int) -> Window[RemoteTree[Any]]:
    """A window of the tree of some parts, scored, whose states are in the object store."""
    schedule = settings.schedule.build()
    rewards = {name: np.linspace(0, 1, schedule.leaves) for name in ("ocr", "ocr_exact")}
    sent = [(PartHeader.of(part), ray.put(states_of(part))) for part in parts]
    return Window(iteration, [RemoteTree(0, "1", schedule, sent, rewards)], closes_update=True)


def test_states_are_those_that_were_sampled_fetched_ahead_or_not(
    tiny_policy: Policy, run_settings: Settings, head: str
) -> None:
    settings = run_settings({"rollout.max_batch_rows": 2})
    task = Task(1, (0,), ("1",), settings.schedule.build(), 7, 0)
    parts = list(RolloutWorker(tiny_policy, settings.rollout, 0).sample(task))
    assert len(parts) > 1
    sampled = {int(node): state for part in parts for node, state in zip(part.nodes, part.latents, strict=True)}
    fetched = FetchedStates(settings, rank=0, ranks=1)

    def arrive(window: Window[RemoteTree[Any]]) -> bool:
        (tree,) = fetched.take(window).trees
        return all(torch.equal(tree.state(node), state) for node, state in sampled.items())

    with connected(head):
        first, second = (remote(settings, parts, iteration) for iteration in (1, 2))
        fetched.fetch(second)  # as may happen before the present window is taken
        assert arrive(first)
        assert arrive(second)
        fetched.forget()  # a checkpoint may take the run back
        assert arrive(first)
