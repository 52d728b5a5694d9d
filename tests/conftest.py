"""What many tests share: small real policies, trees sampled from them, and a Ray cluster, ended by its process id."""

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

# Tests start other processes beside them, and threads that spin while they wait would slow both 20 times.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is another process of tests for the other core
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # the tests start Rays of their own, on this host alone

import hypothesis
import numpy as np
import psutil
import pytest
from branchgrpo.cluster.commands import status
from branchgrpo.proto.packed_tensor import ForwardCache
from branchgrpo.proto.schedule import Schedule
from branchgrpo.proto.settings import PolicySettings, RolloutSettings, RunSettings
from branchgrpo.proto.settings_errors import parse_settings
from branchgrpo.proto.tree import Task, Tree
from branchgrpo.rollout_workers.policies.base import Policy
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from support import Weights, ray_head, run_train, weights

# A shell's job in the background ignores Ctrl-C, and so would all commands that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

PROMPTS = ("123", "456", "789")
LONGEST = ("test_families.py", "test_family_training.py")
"""Files that begin first, so that no process is at work on one of them when the others have ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    """DeepSpeed asks for whole garbage collections, which look at all modules again unless these are frozen."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Flux pipeline like FLUX.1-dev (embedded guidance, resolution-dependent shift) with random small weights."""
    from families import saved  # half of this file's imports, which the process that hands out tests needs not

    return saved("FLUX.1-dev", tmp_path_factory.mktemp("policy") / "tiny")


@pytest.fixture(scope="session")
def policy_settings(tiny_pipeline: Path) -> PolicySettings:
    return PolicySettings(
        pretrained=str(tiny_pipeline), height=16, width=24, max_sequence_length=6, precision="float32", device="cpu"
    )


@pytest.fixture
def tiny_policy(policy_settings: PolicySettings) -> Policy:
    return load_policy(policy_settings)


@pytest.fixture
def run_settings(settings_in: Callable[..., RunSettings], tmp_path: Path) -> Callable[..., RunSettings]:
    """Settings of a small run over the tiny policy in this test's folder, with dotted replacements."""
    return lambda changes=None: settings_in(tmp_path, changes)


@pytest.fixture(scope="session")
def settings_in(policy_settings: PolicySettings) -> Callable[..., RunSettings]:
    def settings(folder: Path, changes: Mapping[str, Any] | None = None) -> RunSettings:
        prompts = folder / "prompts.txt"
        prompts.write_text("\n".join(f"{number:03d}" for number in range(0, 40, 3)))
        content: dict[str, Any] = {
            "name": "run",
            "runs": str(folder / "runs"),
            "iterations": 2,
            "execution": "in_process",
            "policy": policy_settings.model_dump(),
            "prompts": {"train": str(prompts), "held_out": str(prompts), "per_iteration": 4},
            "schedule": {"steps": 5, "splits": {0: 2, 2: 2}, "eta": 0.7},
            "rollout": {"trees_per_task": 2, "max_batch_rows": 16},
            "rewards": {"ocr": {"weight": 1.0}, "ocr_exact": {"weight": 0.0}},
            "learner": {
                "zero_stage": 0,
                "updates_per_iteration": 2,
                "window_trees": 2,
                "rows_per_micro_batch": 5,
                "clip_range": 0.01,
                "optimizer": {"learning_rate": 1e-3, "gradient_clipping": 0.0},
            },
            "evaluation": {"prompts": 3},
            "checkpoint": {"every": 1},
        }
        for key, value in (changes or {}).items():
            *sections, name = key.split(".")
            target = content
            for section in sections:
                target = target.setdefault(section, {})
            target[name] = deepcopy(value)  # other changes may be within it
        return parse_settings(content)

    return settings


def sampled_trees(
    policy: Policy,
    schedule: Schedule,
    *,
    rollout: RolloutSettings | None = None,
    prompts: tuple[str, ...] = PROMPTS,
    version: int = 0,
    rewards: str = "random",
    kept: ForwardCache | None = None,
) -> list[Tree]:
    """Whole trees with made-up scores: `random` ones, or `equal` ones."""
    worker = RolloutWorker(policy, rollout or RolloutSettings(max_batch_rows=64), version, kept)
    trees = [Tree(i, prompt, schedule) for i, prompt in enumerate(prompts)]
    for part in worker.sample(Task(1, tuple(range(len(prompts))), prompts, schedule, 7, version)):
        trees[part.tree].add(part)
    rng = np.random.default_rng(3)
    for tree in trees:
        scores = rng.random(schedule.leaves) if rewards == "random" else np.full(schedule.leaves, 0.3)
        leaves = np.arange(schedule.first_node[-2], schedule.nodes)
        tree.add_scores(leaves, {"ocr": scores, "ocr_exact": scores > 0.5})
    return trees


@pytest.fixture
def sample() -> Callable[..., list[Tree]]:
    return sampled_trees


@pytest.fixture(scope="session")
def small_methods() -> dict[str, dict[str, Any]]:
    """By method, settings that make its schedule small."""
    return {
        "dance_grpo": {"steps": 5, "group": 3},
        "flow_grpo": {"steps": 5, "group": 3},
        "flow_grpo_fast": {"steps": 7, "group": 3, "window": 2, "ode_stride": 2},
        "nft": {"steps": 5, "group": 3},
        "mix_grpo": {"steps": 7, "group": 3, "window": 2, "window_start": 2},
        "tempflow_grpo": {"steps": 6, "children": 4, "split_step": 2, "ode_stride": 3},
        "tree_grpo": {"steps": 6, "children": 2, "window": 2},
        "branch_grpo": {"steps": 6, "splits": {0: 2, 2: 3}, "roots": 2},
        "branch_grpo_mix": {"steps": 8, "splits": {0: 2, 2: 2}, "window": 1, "window_start": 4, "ode_stride": 2},
    }


@pytest.fixture(autouse=True)
def just_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a command has from its start begins with the test."""
    age = time.time() - psutil.Process().create_time()
    monkeypatch.setattr(status, "ALL_SECONDS", status.ALL_SECONDS + age)


@pytest.fixture
def store_bytes() -> Callable[[], int]:
    """Tells the bytes in the object store of the node that this process is connected to."""

    def used() -> int:
        import ray
        from ray._private.internal_api import node_stats

        (node,) = ray.nodes()
        stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
        return int(stats.store_stats.object_store_bytes_used)

    return used


@pytest.fixture(scope="session")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which scorers note the faults that they have had."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def head(faults: Path) -> Iterator[str]:
    """Address of a Ray cluster with more CPUs than there are, so that pools of any size find room."""
    os.environ.update({"PYTHONPATH": str(Path(__file__).parent), "BRANCHGRPO_TEST_FAULTS": str(faults)})
    try:
        with ray_head(cpus=16, store_bytes=500_000_000) as address:
            yield address
    finally:
        del os.environ["PYTHONPATH"]


@pytest.fixture(scope="session")
def plain_run(settings_in: Callable[..., RunSettings], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `ray_runs` in a process of its own: ZeRO 3, which others use, changes torch for good."""
    import ray_runs

    folder = tmp_path_factory.mktemp("plain")
    settings = settings_in(folder, {**ray_runs.BASE, "iterations": ray_runs.ITERATIONS})
    return run_train(settings, folder)


@pytest.fixture(scope="session")
def plain(plain_run: Path) -> Weights:
    """The weights that it has learned."""
    return weights(plain_run)


@pytest.fixture(scope="session")
def service() -> Iterator[Any]:
    """A reward service in a process of its own, to be attacked."""
    from fuzzing import served

    with served() as service:
        yield service


@pytest.fixture
def small() -> Iterator[Any]:
    """A client of a reward service with tight limits, which must still score when a test is done with it."""
    import score_requests

    with score_requests.small_client() as client:
        yield client
