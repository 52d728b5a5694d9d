"""A recorded tree of five nodes, for tests of files and pages."""

from dataclasses import replace
from typing import Any

import numpy as np
from branchgrpo.cluster.run.tree_record import TreeRecord

SMALL = TreeRecord(
    iteration=10,
    tree=3,
    prompt="prompt",
    objective="ratio",
    parent=np.array([-1, 0, 0, 1, 2]),
    depth=np.array([0, 1, 1, 2, 2]),
    level=np.array([0, 1, 1, 4, 4]),
    sigma=np.array([1.0, 0.5, 0.5, 0.0, 0.0]),
    stochastic=np.array([False, True, True, False, False]),
    trained=np.array([False, True, True, False, False]),
    state=np.array([0, 4, 4, 1, 1], dtype=np.uint8),
    value=np.array([0.5, 0.25, 0.75, 0.25, 0.75]),
    advantage=np.array([0.0, -1.0, 1.0, 0.0, 0.0]),
    weight=np.array([0.0, 0.5, 0.5, 0.0, 0.0]),
    logprob=np.array([np.nan, -1.5, -1.25, np.nan, np.nan]),
    ratio=np.array([np.nan, 1.0, 1.0, np.nan, np.nan]),
    rewards={"ocr": np.array([0.25, 0.75])},
)


def small_record(**changes: Any) -> TreeRecord:
    """A root with two children, a leaf below each, with other fields where they are given."""
    return replace(SMALL, **changes)
