"""The loop on Ray gives what the loop in one process gives, bit by bit."""

import os
from pathlib import Path

import ray
from branchgrpo.cluster.on_ray.connect import connected
from ray_runs import assert_as_plain
from support import SMALL, Settings


def test_weights_are_bit_equal_to_the_plain_loop_s(
    plain_run: Path, run_settings: Settings, tmp_path: Path, head: str
) -> None:
    """Of a run with a name of all letters."""
    changes = {"pools.rollout_workers": SMALL, "name": "é #1 [red]=%d 😀"}
    assert_as_plain(changes, plain_run, run_settings, tmp_path, head)


def test_a_process_that_was_given_no_gpu_sees_none(head: str) -> None:
    """Else all of them would take the node's first."""

    @ray.remote(num_cpus=0)
    def visible() -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    with connected(head):
        assert ray.get(visible.remote()) == ""
