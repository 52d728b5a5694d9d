"""Weights are cut into pieces of whole tensors."""

from collections import ChainMap

import numpy as np
import pytest
from branchgrpo.cluster.on_ray import broadcast
from branchgrpo.proto.packed_tensor import PackedTensor
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(0, 30), max_size=20))
def test_pieces_are_whole_tensors_of_at_most_a_size(sizes: list[int]) -> None:
    weights = {f"{i}": PackedTensor(np.zeros(size, np.uint8), "uint8") for i, size in enumerate(sizes)}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(broadcast, "PIECE_BYTES", 16)
        pieces = broadcast.cut(weights)
    assert [name for piece in pieces for name in piece] == list(weights)
    assert dict(ChainMap(*pieces)) == weights
    cut = [sum(value.bits.nbytes for value in piece.values()) for piece in pieces]
    assert all(size <= 16 or len(piece) == 1 for size, piece in zip(cut, pieces, strict=True))
    firsts = [next(iter(piece.values())).bits.nbytes for piece in pieces]
    assert all(size + first > 16 for size, first in zip(cut, firsts[1:], strict=False)), (
        "no more pieces than are needed"
    )


def test_a_small_model_is_one_piece() -> None:
    weights = {f"{i}": PackedTensor(np.zeros(1000, np.float32), "float32") for i in range(50)}
    assert broadcast.cut(weights) == [weights]
