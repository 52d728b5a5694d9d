"""The way of the weights to many nodes: in pieces, of which each node passes on to the next what it has.

Invariant: the learner's node sends one copy, however many nodes there are, and a node takes in the next piece while it
passes on the one before. A piece that is lost on the way, with a process or a node, is fetched from the learner's node.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from ...proto.packed_tensor import PackedTensor
from ..run.cuts import PIECE_BYTES
from .messages import PublishedWeights, WeightsRef

Weights = dict[str, PackedTensor]
RELAY_GROUP = "passing on"
"""The group of calls that a rollout worker answers while it samples: it receives one piece while it writes another."""
PASSED_AT_ONCE = 2


def cut(weights: Weights) -> list[Weights]:
    """Weights in pieces of whole tensors, of at most `PIECE_BYTES` but for tensors that are larger by themselves."""
    pieces: list[Weights] = []
    size = 0
    for name, value in weights.items():
        size += value.bits.nbytes
        if not pieces or size > PIECE_BYTES:
            pieces.append({})
            size = value.bits.nbytes
        pieces[-1][name] = value
    return pieces


class Chain:
    """The nodes along which the pieces of a version are passed on."""

    def __init__(self, version: int, relays: Mapping[str, Any]) -> None:
        """`relays`: node id -> a process there that passes on."""
        self._version, self._relays = version, relays
        self._own: list[Sequence[Any]] = []
        self._copies: dict[str, list[Sequence[Any]]] = {node: [] for node in relays}

    def send(self, piece: Any) -> None:
        """Have a piece, to which `piece` is a reference, passed on from node to node."""
        self._own.append([piece])
        copy = piece
        for node, relay in self._relays.items():
            # In lists, the references don't hold up what else the process is asked to do.
            copy = relay.pass_on.options(concurrency_group=RELAY_GROUP).remote([copy, piece])
            self._copies[node].append([copy, piece])

    def published(self) -> PublishedWeights:
        """The version, when all of its pieces are on their way."""
        # Tasks carry one reference, not those of all pieces.
        own, *others = (WeightsRef(self._version, ray.put(ways)) for ways in (self._own, *self._copies.values()))
        return PublishedWeights(self._version, own, dict(zip(self._copies, others, strict=True)))


def fetch(copies: Sequence[Any]) -> Weights:
    """A piece: the first of its copies that isn't lost. Raises what happened to the last one."""
    *others, last = copies
    for copy in others:
        with suppress(RayError):
            found: Weights = ray.get(copy)
            return found
    found = ray.get(last)
    return found


def read(weights: WeightsRef) -> Weights:
    """All tensors of a version. Raises RayError if a piece is lost wherever it was."""
    pieces: list[Sequence[Any]] = ray.get(weights.pieces)
    nearest = [copies[0] for copies in pieces]
    ray.wait(nearest, num_returns=len(nearest), timeout=0)  # all of them are fetched at once
    return {name: value for copies in pieces for name, value in fetch(copies).items()}
