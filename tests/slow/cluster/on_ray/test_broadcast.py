"""Weights on their way along four nodes arrive as they were sent, whoever dies meanwhile."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import small_pieces
from branchgrpo.benchmarks.support.local_cluster import kill_raylet, several_nodes
from branchgrpo.cluster.on_ray.actors import RolloutActor
from branchgrpo.cluster.on_ray.broadcast import PASSED_AT_ONCE, RELAY_GROUP, Chain, Weights, read
from branchgrpo.cluster.on_ray.connect import connected
from branchgrpo.cluster.on_ray.messages import WeightsRef
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.proto.packed_tensor import PackedTensor
from branchgrpo.proto.prompts import read_prompts
from ray_runs import BASE, on_ray, trained
from support import SMALL, Settings, assert_bit_equal, until

PIECES = 12
Nodes = tuple[str, list[subprocess.Popen[bytes]]]
"""The address of a cluster, and its nodes for workers."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with several_nodes(3, store=200_000_000) as (address, workers):
        with connected(address):
            until(lambda: ray.cluster_resources().get("work") == 3)
        yield address, workers


@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
@pytest.mark.timeout(600)
def test_a_run_on_four_nodes_learns_the_same(lora: bool, run_settings: Settings, tmp_path: Path, nodes: Nodes) -> None:
    changes = {"policy.adapter": "small_pieces:InSmallPieces", "execution": "ray"}
    pools = {
        "rollout_workers": {**SMALL, "count": 3, "resources": {"work": 1}},
        "learner": {**SMALL, "resources": {"learn": 1}},
        "rewards": {"ocr": {**SMALL, "deterministic": True}},
    }
    settings = run_settings({**BASE, **changes, "pools": pools, "learner.lora": {"rank": 16} if lora else None})
    prompts = read_prompts(settings.prompts.train, "prompts.train")
    expected = trained(InProcessLoop(settings, prompts), settings, tmp_path / "plain")
    assert sum(value.nbytes for value in expected.values()) > 3 * small_pieces.PIECE_BYTES
    loop = on_ray(settings, tmp_path / "run", nodes[0])
    assert_bit_equal(trained(loop, settings, tmp_path / "checkpoint"), expected)


@pytest.mark.timeout(300)
def test_what_a_lost_node_had_to_pass_on_arrives(nodes: Nodes) -> None:
    """The second of three nodes dies when it has passed on some pieces, and the process on the first."""

    class Publisher:
        def pieces(self) -> Iterator[Weights]:
            for k in range(PIECES):
                yield {str(k): PackedTensor(np.full(500_000, k, np.float32), "float32")}

    class Relay(RolloutActor):
        def __init__(self) -> None:
            pass

        def raylet(self) -> int:
            return os.getppid()

        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

        def read(self, weights: WeightsRef) -> dict[str, list[float]]:
            return {name: [float(value.bits.min()), float(value.bits.max())] for name, value in read(weights).items()}

    address, processes = nodes
    with connected(address):
        actor = ray.remote(num_cpus=0, resources={"work": 1}, concurrency_groups={RELAY_GROUP: PASSED_AT_ONCE})(Relay)
        relays = [actor.remote() for _ in range(3)]
        ids = ray.get([relay.node.remote() for relay in relays])
        first, second, third = relays
        publisher = ray.remote(num_cpus=0, resources={"learn": 1})(Publisher).remote()
        chain = Chain(7, dict(zip(ids, relays, strict=True)))
        for k, piece in enumerate(publisher.pieces.options(num_returns="streaming").remote()):
            chain.send(piece)
            if k == PIECES // 2:
                raylet = ray.get(second.raylet.remote())
                (doomed,) = (node for node in processes if raylet in _children_of(node))
                kill_raylet(doomed)
                ray.kill(first)
        published = chain.published()
        for node in (ids[2], "a node that has joined"):
            found = ray.get(third.read.remote(published.at(node)))
            assert found == {str(k): [k, k] for k in range(PIECES)}


def _children_of(node: subprocess.Popen[bytes]) -> set[int]:
    return {child.pid for child in psutil.Process(node.pid).children()}
