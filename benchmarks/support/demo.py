"""The demo's recipe as benchmarks run it: with other settings, or with stand-ins for its models."""

import json
from collections.abc import Mapping
from typing import Any

from ...proto.recipe import SHIPPED, load_recipe
from ...proto.settings import RunSettings

RECIPE = SHIPPED / "glyphs.yaml"
PROMPTS = tuple(f"{i:03d}" for i in range(1000))
STAND_INS = "branchgrpo.benchmarks.support.stand_ins"
SHARE = {"cpus": 0.1, "threads": 1}
"""What a process reserves that sleeps instead of computing."""


def demo(changes: Mapping[str, Any]) -> RunSettings:
    """The demo's settings with other values for some dotted names, which may be sections."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changes.items()}
    return load_recipe(RECIPE, [f"{name}={text}" for name, text in texts.items()])


def stand_in_run(policy: str, scorers: Mapping[str, str], workers: int, changes: Mapping[str, Any]) -> RunSettings:
    """The demo with stand-ins for its policy and its reward models (reward -> scorer), which need no core of their
    own, in processes of their own, and with `changes`."""
    pools = {"rollout_workers": {**SHARE, "count": workers}, "learner": SHARE, "rewards": dict.fromkeys(scorers, SHARE)}
    return demo(
        {
            "placement": "separate",
            "policy.adapter": f"{STAND_INS}:{policy}",
            "rewards": {reward: {"scorer": f"{STAND_INS}:{scorer}"} for reward, scorer in scorers.items()},
            "pools": pools,
            "logging": {"tensorboard": False, "samples_every": 0, "trees_every": 0, "trace": False},
            **changes,
        }
    )
