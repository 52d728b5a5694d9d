"""Weights on their way from a learner's node to one node of workers and to three, in turns on one cluster: every node
fetches all from the learner's, or each passes pieces on to the next.

The nodes are Ray's processes on this machine, so they share its memory and cores. What this shows is who has to send:
the CPU seconds of the learner's node. How many seconds a network saves is what `cluster/plan/broadcast.py` simulates.

    python -m branchgrpo.benchmarks.scaling.weights --out build/bench
"""

import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Annotated, Any

import numpy as np
import psutil
import ray
import typer
from rich.console import Console
from rich.table import Table

from ...cluster.on_ray.broadcast import PASSED_AT_ONCE, RELAY_GROUP, Chain, Weights, fetch, read
from ...cluster.on_ray.connect import connected
from ...cluster.on_ray.messages import WeightsRef
from ...proto.packed_tensor import PackedTensor
from ..support.local_cluster import several_nodes, wait_until
from ..support.report import OUT, Out, Rounds, report_path, write_report

WORKERS = 3
"""Nodes beside the learner's."""
WAYS = ("from the learner's node", "passed on")


class Publisher:
    """What rank 0 does."""

    def pieces(self, count: int, size: int, seed: int) -> Iterator[Weights]:
        """Pieces of random bits, `size` bytes each."""
        rng = np.random.default_rng(seed)
        for k in range(count):
            yield {str(k): PackedTensor(rng.integers(0, 256, size, np.uint8), "uint8")}

    def raylet(self) -> int:
        """The process that sends for this node."""
        return os.getppid()


class Worker:
    """What a rollout worker does with weights."""

    def pass_on(self, copies: Sequence[Any]) -> Weights:
        """A piece of the weights from one of its copies, for the next node."""
        return fetch(copies)

    def node(self) -> str:
        """Id of the node that this process is on."""
        return str(ray.get_runtime_context().get_node_id())

    def read(self, weights: WeightsRef) -> tuple[float, int]:
        """Read the weights. Returns the Unix time at which all had arrived, and a checksum of them."""
        found = read(weights)
        arrived = time.time()
        return arrived, zlib.crc32(b"".join(found[name].bits.tobytes() for name in sorted(found)))


def sent(publisher: Any, workers: Mapping[str, Any], pieces: int, size: int, seed: int, way: str) -> dict[str, Any]:
    """Seconds until all workers have the weights, and CPU seconds of the learner's node meanwhile."""
    references = list(publisher.pieces.options(num_returns="streaming").remote(pieces, size, seed))
    ray.wait(references, num_returns=pieces, fetch_local=False)
    raylet = psutil.Process(ray.get(publisher.raylet.remote()))
    before, start = sum(raylet.cpu_times()[:2]), time.time()
    chain = Chain(seed, workers if way == WAYS[1] and len(workers) > 1 else {})
    for piece in references:
        chain.send(piece)
    published = chain.published()
    read = ray.get([worker.read.remote(published.at(node)) for node, worker in workers.items()])
    sending = sum(raylet.cpu_times()[:2]) - before
    return {"seconds": max(end for end, _ in read) - start, "sending": sending, "sums": {crc for _, crc in read}}


def main(
    out: Out = OUT,
    rounds: Rounds = 5,
    pieces: Annotated[int, typer.Option(help="Number of pieces.")] = 16,
    piece_mb: Annotated[int, typer.Option(help="MB of a piece.")] = 8,
) -> None:
    """Measure how weights reach one node of workers and three.

    Example: python -m branchgrpo.benchmarks.scaling.weights --out build/bench --pieces 64
    """
    path = report_path(out, "weights")
    size = piece_mb * 10**6
    measured: dict[tuple[int, str], list[dict[str, Any]]] = {(n, way): [] for n in (1, WORKERS) for way in WAYS}
    with several_nodes(WORKERS, store=max(8 * pieces * size, 100_000_000)) as (address, _), connected(address):
        wait_until(lambda: ray.cluster_resources().get("work") == WORKERS, 180, lambda: "nodes didn't start")
        publisher = ray.remote(num_cpus=0, resources={"learn": 1})(Publisher).remote()
        actor = ray.remote(num_cpus=0, resources={"work": 1}, concurrency_groups={RELAY_GROUP: PASSED_AT_ONCE})(Worker)
        actors = [actor.remote() for _ in range(WORKERS)]
        workers = dict(zip(ray.get([one.node.remote() for one in actors]), actors, strict=True))
        for seed in range(rounds + 1):
            sums = set()
            for (count, way), results in measured.items():
                result = sent(publisher, dict(list(workers.items())[:count]), pieces, size, seed, way)
                sums |= result.pop("sums")
                results.extend([result] if seed else [])
            if len(sums) != 1:
                raise SystemExit("what arrived differs")
    medians = {
        case: {name: median(one[name] for one in results) for name in ("seconds", "sending")}
        for case, results in measured.items()
    }
    table = Table("way", "nodes", "seconds", "CPU seconds of the learner's node", title=f"{pieces} x {piece_mb} MB")
    for (count, way), result in medians.items():
        table.add_row(way, f"{count + 1}", f"{result['seconds']:.2f}", f"{result['sending']:.2f}")
    console = Console()
    console.print(table)
    ratios = {
        way: {name: medians[WORKERS, way][name] / medians[1, way][name] for name in ("seconds", "sending")}
        for way in WAYS
    }
    for way, ratio in ratios.items():
        console.print(f"{way}: {WORKERS + 1} nodes / 2: {ratio['seconds']:.2f} seconds, {ratio['sending']:.2f} CPU")
    write_report(
        path,
        {
            "pieces": pieces,
            "piece_mb": piece_mb,
            "measured": [{"nodes": n + 1, "way": way, "rounds": r} for (n, way), r in measured.items()],
            "4 nodes over 2": ratios,
        },
    )


if __name__ == "__main__":
    typer.run(main)
