"""The way of a version of the weights to the nodes of a simulated run, as in `cluster/on_ray/broadcast.py`."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import simpy

from ..run.cuts import PIECE_BYTES
from .queues import Line, Network, Steps


def passed_on(
    env: simpy.Environment, network: Network, nodes: Sequence[int], size: float, controller: Line, message: float
) -> Mapping[int, simpy.Event]:
    """Node -> the arrival of so many bytes, which the first of `nodes` has, piece by piece along the chain of them.

    Every piece costs the controller a `message` to every node. Nothing is passed on where there is a single piece, or
    a single node beside the first.
    """
    pieces = math.ceil(size / PIECE_BYTES)
    if pieces < 2 or len(nodes) < 3:
        return {}
    arrived = {node: [env.event() for _ in range(pieces)] for node in nodes}

    def asked_for() -> Steps:
        for there in arrived[nodes[0]]:
            yield controller.serve(message * (len(nodes) - 1))
            there.succeed()

    def passes(source: int, target: int) -> Steps:
        for there, here in zip(arrived[source], arrived[target], strict=True):
            yield there
            yield network.send(source, target, size / pieces)
            here.succeed()

    env.process(asked_for())
    for source, target in pairwise(nodes):
        env.process(passes(source, target))
    return {node: arrived[node][-1] for node in nodes[1:]}
