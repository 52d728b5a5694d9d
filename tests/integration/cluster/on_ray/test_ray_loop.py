"""The loop on Ray gives what the loop in one process gives, bit by bit.

What else needs no more than a Ray cluster is here too, so that tests start one less.
"""

import json
import os
from pathlib import Path

import pytest
import ray
from branchgrpo.cluster.on_ray.address import nodes_here
from branchgrpo.cluster.on_ray.connect import connected
from branchgrpo.cluster.on_ray.internals import draining_nodes
from ray_runs import assert_as_plain
from support import SMALL, Settings, done_by, until


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


def test_variables_that_a_job_sets_itself_win(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    job = {"runtime_env": {"env_vars": {"HF_HUB_OFFLINE": "0", "MINE": "1"}}, "metadata": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    with connected(head):
        variables = ray.get_runtime_context().runtime_env["env_vars"]
    assert (
        variables.items()
        >= {
            "HF_HUB_OFFLINE": "0",
            "MINE": "1",
            "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
        }.items()
    )


def test_the_nodes_of_this_machine_are_found(head: str) -> None:
    port = head.rpartition(":")[2]
    # A head answers before its own node is there.
    until(lambda: port in {node.address.rpartition(":")[2] for node in nodes_here()}, 60)


def test_the_head_of_a_cluster_is_not_drained(head: str) -> None:
    done = done_by("drain", "--address", head)
    assert (done.returncode, f"is the head of the cluster at '{head}': no run outlives it" in done.stderr) == (2, True)
    with connected(head):
        assert not draining_nodes()
