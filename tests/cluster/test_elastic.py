"""Nodes that come and go: brought by Ray's autoscaler, joining a run, and drained before they are taken away."""

import signal
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from branchgrpo.benchmarks.support.local_cluster import end, free_port, started
from branchgrpo.cluster.on_ray.driver import RayLoop
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.proto.errors import InputError
from support import Settings, assert_bit_equal, command, ray_head, recipe_in, until, weights

LITTLE = {"cpus": 0.1, "threads": 1}
ON_NODES = {**LITTLE, "resources": {"work": 1}}


def autoscaling(most: int, address: str) -> dict[str, Any]:
    """Configuration of an autoscaler whose nodes are processes of this machine."""
    kinds = {
        "ray.head.default": {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1, "work": 1}, "node_config": {}, "min_workers": 0, "max_workers": most},
    }
    return {
        "cluster_name": "fake",
        "max_workers": most,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "gcs_address": address,
            "head_node_id": HEAD_ID,
        },
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        **{key: [] for key in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{key: [] for key in ("initialization_commands", "cluster_synced_files")},
    }


HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"


@pytest.mark.slow
def test_the_autoscaler_brings_what_the_run_waits_for_and_then_what_it_is_better_off_with(
    run_settings: Settings, tmp_path: Path
) -> None:
    """Nothing fits at first. A node comes for the one worker that must be; two more, since the learner waits."""
    changes = {
        "execution": "ray",
        "threads": 1,
        "policy.adapter": "branchgrpo.benchmarks.support.stand_ins:SleepingPolicy",
        "rewards": {"constant": {"scorer": "branchgrpo.benchmarks.support.stand_ins:instant_scorer"}},
        "prompts.per_iteration": 12,
        "rollout.trees_per_task": 1,
        "pools": {
            "rollout_workers": {**ON_NODES, "count": 1, "max_count": 3},
            "learner": LITTLE,
            "rewards": {"constant": LITTLE},
        },
    }
    config, port = tmp_path / "autoscaling.yaml", free_port()
    config.write_text(yaml.safe_dump(autoscaling(3, f"{ray.util.get_node_ip_address()}:{port}")))
    with ray_head(
        f"--autoscaling-config={config}",
        port=port,
        AUTOSCALER_UPDATE_INTERVAL_S="1",
        RAY_FAKE_CLUSTER="1",
        RAY_enable_autoscaler_v2="1",
        RAY_CLOUD_INSTANCE_ID=HEAD_ID,
        RAY_OVERRIDE_NODE_ID_FOR_TESTING=HEAD_ID,
    ) as address:
        (tmp_path / "refused").mkdir()
        with pytest.raises(InputError, match=r"pools.rollout_workers needs 1 x 0.1 CPU, 1 work; there is room for 0"):
            RayLoop(run_settings(changes), tmp_path / "refused", ["1"], address)
        (tmp_path / "run").mkdir()
        settings = run_settings({**changes, "pools.placement_timeout_seconds": 120})
        with closing(RayLoop(settings, tmp_path / "run", ["1"], address)) as loop:

            def workers() -> list[str]:
                status = ray.get(loop._controller.status.remote())
                return [worker["state"] for worker in status["pools"]["rollout_workers"]]

            assert len(workers()) == 1
            loop.iterate(1)
            assert len(workers()) == 3, "twelve tasks one after the other are worth two more workers"
            until(lambda: workers() == ["idle"] * 3)
            assert sum(node["Alive"] for node in ray.nodes()) == 4
            loop.iterate(2)
            assert len(workers()) == 3


@pytest.mark.slow
@pytest.mark.long
def test_a_node_that_gets_notice_is_left_in_time(run_settings: Settings, tmp_path: Path) -> None:
    """Workers and learner are all on one node; it gets SIGTERM when another has joined; everything moves there."""
    settings = run_settings(
        {
            "threads": 1,
            "iterations": 40,  # some are left when the other node has joined
            "prompts.per_iteration": 24,
            "pools": {
                "rollout_workers": {**ON_NODES, "count": 2},
                "learner": ON_NODES,
                "rewards": {"ocr": {**LITTLE, "deterministic": True}},
            },
        }
    )
    recipe = recipe_in(tmp_path, settings)
    subprocess.run(command("train", recipe, "name=plain"), check=True, capture_output=True)
    size = ["--node-ip-address=127.0.0.1", "--num-cpus=4", '--resources={"work": 8}']
    with ray_head() as address:
        doomed = subprocess.Popen(command("node", address, "--seconds", "120", *size))
        other = None
        try:
            run, log = settings.runs / "moved", (tmp_path / "log").open("wb")
            changes = ("name=moved", "execution=ray", "pools.placement_timeout_seconds=120")
            train = command("train", recipe, *changes, "--address", address)
            driver = subprocess.Popen(train, stdout=log, stderr=log)
            until(lambda: RunFolder(run).lines("metrics") or driver.poll() is not None)
            other = started(f"--address={address}", *size)
            ray.init(address, logging_level="error")
            until(lambda: sum(node["Alive"] for node in ray.nodes()) == 3)
            ray.shutdown()
            doomed.send_signal(signal.SIGTERM)
            assert doomed.wait(150) == 0
            assert driver.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
        finally:
            for process in (doomed, driver):
                process.kill()
            if other:
                end(other)
    told = (tmp_path / "log").read_text()
    assert "the node of a learner rank is about to go; there is a checkpoint" in told
    assert "died" not in told, "nothing was lost"
    plain = settings.runs / "plain"
    assert_bit_equal(weights(plain, 40), weights(run, 40))
    rewards = [[line["rewards"] for line in RunFolder(folder).lines("metrics")] for folder in (plain, run)]
    assert rewards[0] == rewards[1]


@pytest.mark.slow
@pytest.mark.long
def test_reward_models_scale_with_the_queue(run_settings: Settings, tmp_path: Path) -> None:
    """A model that takes a second for each request gets a second replica."""
    settings = run_settings(
        {
            "execution": "ray",
            "threads": 1,
            "policy.adapter": "branchgrpo.benchmarks.support.stand_ins:InstantPolicy",
            "rewards": {"constant": {"scorer": "branchgrpo.benchmarks.support.stand_ins:slow_scorer"}},
            "prompts.per_iteration": 120,
            "rollout.trees_per_task": 1,
            "pools": {
                "rollout_workers": LITTLE,
                "learner": LITTLE,
                "rewards": {"constant": {**LITTLE, "max_replicas": 2, "deterministic": True}},
            },
        }
    )
    (tmp_path / "run").mkdir()
    with ray_head() as address, closing(RayLoop(settings, tmp_path / "run", ["1"], address)) as loop:

        def replicas() -> int:
            rewards = ray.get(loop._controller.status.remote())["pools"]["rewards"]
            return int(rewards["constant"].get("RUNNING", 0))

        assert replicas() == 1
        answer = loop._controller.iterate.remote(1)
        until(lambda: replicas() == 2)
        assert ray.get(answer)[0].forward_passes == 120 * settings.schedule.build().forward_passes
