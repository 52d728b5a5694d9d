"""Nodes that are drained before they are taken away, and reward models that follow their queue."""

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import ray
from branchgrpo.benchmarks.support.local_cluster import end, started
from branchgrpo.cluster.on_ray.driver import RayLoop
from branchgrpo.cluster.run.folder import RunFolder
from support import LITTLE, Settings, assert_bit_equal, command, ray_head, recipe_in, until, weights

ON_NODES = {**LITTLE, "resources": {"work": 1}}


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
            rewards = loop.status()["pools"]["rewards"]
            return int(rewards["constant"].get("RUNNING", 0))

        assert replicas() == 1
        with ThreadPoolExecutor() as thread:
            report = thread.submit(loop.iterate, 1)
            until(lambda: replicas() == 2)
            assert report.result().rewards["constant"].size == 120 * settings.schedule.build().leaves
