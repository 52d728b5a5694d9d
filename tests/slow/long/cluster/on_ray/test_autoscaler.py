"""Nodes that Ray's autoscaler brings to a run."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from branchgrpo.benchmarks.support.local_cluster import free_port
from branchgrpo.cluster.on_ray.driver import RayLoop
from branchgrpo.proto.errors import InputError
from support import LITTLE, Settings, ray_head, until

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


def test_the_autoscaler_brings_what_the_run_waits_for_and_more(run_settings: Settings, tmp_path: Path) -> None:
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
                status = loop.status()
                return [worker["state"] for worker in status["pools"]["rollout_workers"]]

            assert len(workers()) == 1
            loop.iterate(1)
            assert len(workers()) == 3, "twelve tasks one after the other are worth two more workers"
            until(lambda: workers() == ["idle"] * 3)
            assert sum(node["Alive"] for node in ray.nodes()) == 4
            loop.iterate(2)
            assert len(workers()) == 3
