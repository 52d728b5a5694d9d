"""Reward models that find no room, or don't start, on a real Ray Serve."""

from collections.abc import Iterator

import pytest
import ray
from branchgrpo.cluster.on_ray import reward_deployment
from branchgrpo.cluster.on_ray.connect import NAMESPACE, connected
from branchgrpo.cluster.on_ray.names import service_name
from branchgrpo.cluster.on_ray.reward_deployment import RewardDeployment
from branchgrpo.proto.errors import RunFailed
from support import COUNTING, SMALL, Settings, until


@ray.remote(num_cpus=0)
class Directory:
    def register(self, *exporter: str) -> None:
        """Every replica tells where its metrics are."""


@pytest.fixture
def directory(head: str) -> Iterator[tuple[str, str]]:
    with connected(head):
        owner = Directory.options(name="owner", namespace=NAMESPACE).remote()
        yield "owner", NAMESPACE
        ray.kill(owner)


def deployment(settings: Settings, scorer: dict[str, object], directory: tuple[str, str]) -> RewardDeployment:
    pools = {"rewards": {next(iter(scorer)): {**SMALL, "cpus": 6}}}
    return RewardDeployment(settings({"rewards": scorer, "pools": pools}), service_name("tested"), directory)


def test_a_model_goes_on_with_the_replicas_that_have_room(
    run_settings: Settings, directory: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of nodes with 16 CPUs, for replicas of six each."""
    monkeypatch.setattr(reward_deployment, "PATIENCE_SECONDS", 1)
    models = deployment(run_settings, COUNTING, directory)
    try:
        models.start()
        assert models.running("counting") == 1
        models.start({"counting": 4})
        until(lambda: models.running("counting") == 2)
    finally:
        models.delete()


def test_a_model_that_does_not_start_is_one_error(run_settings: Settings, directory: tuple[str, str]) -> None:
    models = deployment(run_settings, {"ocr": {"scorer": "faulty_scorers:dies_as_it_loads"}}, directory)
    try:
        with pytest.raises(RunFailed, match=r"^reward model 'ocr' doesn't start:\n"):
            models.start()
    finally:
        models.delete()
