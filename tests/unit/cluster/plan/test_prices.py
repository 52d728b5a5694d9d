"""Seconds and sizes of a recipe, against closed forms and against what a loaded policy holds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from branchgrpo.cluster.plan.calibration import Calibration, Pace
from branchgrpo.cluster.plan.costs import Cluster
from branchgrpo.cluster.plan.flops import Work
from branchgrpo.cluster.plan.forecast import forecast
from branchgrpo.cluster.plan.gpus import GPUS
from branchgrpo.cluster.plan.prices import Prices, Sizes, count_sizes
from branchgrpo.cluster.plan.simulation import simulate
from branchgrpo.proto.recipe import SHIPPED, load_recipe
from branchgrpo.rollout_workers.policies.base import trainable
from branchgrpo.rollout_workers.policies.decoded import Decoded
from branchgrpo.rollout_workers.policies.load import load_policy
from plain_diffusers import policy_of
from support import Settings

WORK = Work(forward_row=40e12, trained_row=160e12, decode_leaf=5e12, score_leaf={"hps": 1e12})
SIZES = Sizes(picture=1e6, state=5e5, conditioning=4e6, network=24e9, trained=24e9, parameters=12 * 10**9)
FLUX = load_recipe(SHIPPED / "flux_hps_branch.yaml")


def prices(calibration: Calibration | None = None, **overrides: str) -> Prices:
    settings = load_recipe(
        SHIPPED / "flux_hps_branch.yaml", [f"learner.{key}={text}" for key, text in overrides.items()]
    )
    return Prices(settings, WORK, SIZES, GPUS["h100"], calibration or Calibration())


def test_seconds_are_flops_over_the_peak_and_its_share() -> None:
    costs = prices().costs(Cluster(4, 1, 1))
    assert costs.forward_row == pytest.approx(40 / (989 * 0.4))
    assert costs.learn_row == pytest.approx(160 / (989 * 0.4))
    assert costs.decode_picture == pytest.approx(5 / (989 * 0.2))
    assert costs.score_pictures == {"hps": pytest.approx(1 / (67 * 0.5))}  # in float32
    beside = prices().costs(Cluster(4, 1, 1), shared_rewards=True)
    assert beside.decode_picture == pytest.approx(5 / (989 * 0.2) + 1 / (67 * 0.5))


@pytest.mark.parametrize(
    ("reward", "pool", "device", "seconds"),
    [
        ("hps", {"gpus": 1}, "auto", 1 / (67 * 0.5)),
        ("hps_v3", {"gpus": 1}, "auto", 1 / (989 * 0.2)),
        ("hps", {"cpus": 4}, "auto", 1 / (4 * 0.05)),
        ("hps", {"cpus": 4, "threads": 2}, "auto", 1 / (2 * 0.05)),
        ("hps", {"gpus": 1, "cpus": 4}, "cpu", 1 / (4 * 0.05)),
    ],
)
def test_a_reward_model_is_priced_where_it_runs(
    reward: str, pool: dict[str, int], device: str, seconds: float, run_settings: Settings
) -> None:
    """In its own precision; without a GPU it takes no time from those that sample beside it."""
    given = {"execution": "ray", "rewards": {reward: {"device": device}}, "pools.rewards": {reward: pool}}
    work = replace(WORK, score_leaf={reward: 1e12})
    own = Prices(run_settings(given), work, SIZES, GPUS["h100"], Calibration())
    assert own.scores() == {reward: pytest.approx(seconds)}
    assert own.scores_assumed() == [reward]
    unknown = replace(own, work=replace(WORK, score_leaf={reward: None}))
    assert (unknown.scores_assumed(), unknown.unknown()) == ([], [reward])
    decoded = 5 / (67 * 0.2)
    beside = own.costs(Cluster(4, 1, 1), shared_rewards=True).decode_picture - decoded
    assert beside == pytest.approx(seconds if seconds < 1 else 0)


def test_a_process_of_its_own_scores_where_it_samples(run_settings: Settings) -> None:
    work = replace(WORK, score_leaf={"hps": 1e12})
    for device, seconds in (("auto", 1 / (67 * 0.5)), ("cpu", 1 / (3 * 0.05))):
        given = {"execution": "in_process", "threads": 3, "rewards": {"hps": {"device": device}}}
        own = Prices(run_settings(given), work, SIZES, GPUS["h100"], Calibration())
        assert own.scores() == {"hps": pytest.approx(seconds)}


def test_a_calibration_takes_the_place_of_what_is_assumed() -> None:
    paces = {"forward": Pace(0.5, item=7.0, call=0.1), "hps": Pace(None, item=0.03)}
    costs = prices(Calibration(paces=paces)).costs(Cluster(4, 1, 1))
    assert (costs.forward, costs.forward_row) == (0.1, pytest.approx(40 / (989 * 0.5)))
    assert costs.learn_row == pytest.approx(160 / (989 * 0.4))
    assert costs.score_pictures == {"hps": 0.03}


def test_ranks_exchange_what_their_stage_of_zero_divides() -> None:
    one, many = Cluster(1, 1, 1), Cluster(1, 8, 1)
    link = 0.4 * 450e9
    assert prices().costs(one).micro_batch == 0
    assert prices(zero_stage="1").costs(many).micro_batch == 0
    assert prices(zero_stage="2").costs(many).micro_batch == pytest.approx(24e9 / link)
    # Across nodes, the eight ports of a node are its ranks' link to the others.
    assert prices(zero_stage="2").costs(Cluster(1, 9, 1)).micro_batch == pytest.approx(24e9 / (0.4 * 400e9))
    # Weights are gathered for the forward pass, its recomputation and the backward pass.
    assert prices(zero_stage="3").costs(many).micro_batch == pytest.approx(4 * 24e9 / link)
    assert prices(zero_stage="1").costs(many).update > prices(zero_stage="2").costs(many).update


def test_ranks_in_step_gather_the_network_for_every_pass() -> None:
    many = Cluster(8, 8, 1)
    for stage in ("1", "3"):
        priced = prices(zero_stage=stage)
        gathered = priced.costs(many, colocated=True).forward - priced.costs(many).forward
        assert gathered == pytest.approx(24e9 / (0.4 * 450e9) if stage == "3" else 0)


def test_a_run_in_one_process_takes_the_sum_of_its_work() -> None:
    """Of 24 trees: forward passes, decoding, scoring beside, and the rows that pruning leaves."""
    own = prices(gradient_checkpointing="true", updates_per_iteration="1")
    costs = own.costs(Cluster(1, 1, 1), shared_rewards=True)
    schedule = FLUX.schedule.build()
    rows = 83
    tree = schedule.forward_passes * costs.forward_row + 16 * costs.decode_picture + rows * costs.learn_row
    settings = own.settings.model_copy(update={"placement": "colocated"})
    seconds = simulate(settings, costs, Cluster(1, 1, 1)).seconds[1]
    assert seconds == pytest.approx(24 * tree + costs.update, rel=0.01)


@pytest.mark.parametrize("execution", ["ray", "in_process"])
def test_models_of_evaluations_alone_cost_nothing(execution: str, run_settings: Settings) -> None:
    """A model goes by its first reward, also where that is for evaluations and another one trains."""
    rewards = {"ocr_exact": {"weight": 0}, "ocr": {}, "aesthetic": {"weight": 0}}
    only = {"execution": execution, "rewards": rewards, "evaluation.rewards": ["ocr_exact", "aesthetic"]}
    settings = run_settings(only)
    work = replace(WORK, score_leaf={"ocr_exact": None, "ocr": None, "aesthetic": 1e12})
    paces = {"ocr_exact": Pace(None, item=2.0), "aesthetic": Pace(None, item=99.0)}
    own = Prices(settings, work, SIZES, GPUS["h100"], Calibration(paces=paces))
    assert own.scores() == {"ocr_exact": 2.0}
    assert replace(own, calibration=Calibration()).unknown() == ["ocr_exact"]
    leaves = settings.prompts.per_iteration * settings.schedule.build().leaves
    assert forecast(settings, own).phases["scoring"] == pytest.approx(leaves * 2.0)


@pytest.mark.parametrize(
    ("lora", "precision"), [(None, "float32"), ({"rank": 2}, "float32"), ({"rank": 2}, "bfloat16")]
)
def test_sizes_are_those_of_the_loaded_policy(
    run_settings: Settings, lora: dict[str, int] | None, precision: str
) -> None:
    settings = run_settings({"learner.lora": lora, "policy.precision": precision, "learner.zero_stage": 1})
    policy, sizes = load_policy(settings.policy), count_sizes(settings)
    conditioning = policy.encode("a")
    if settings.learner.lora:
        policy.add_lora(settings.learner.lora)
    trained = [parameter.nbytes for parameter in trainable(policy.network).values()]
    assert sizes.trained == sum(trained)
    assert sizes.network == sum(parameter.nbytes for parameter in policy.network.parameters())
    assert sizes.conditioning == sum(tensor.nbytes for tensor in conditioning.values())
    assert sizes.state == 4 * torch.zeros(policy.latent_shape).numel()


@pytest.mark.parametrize("family", ["FLUX.1-dev", "LTX-2", "Stable Audio"])
def test_a_leaf_has_the_bytes_of_its_media(family: str, run_settings: Settings, tmp_path: Path) -> None:
    given = policy_of(family, tmp_path / "pipeline")
    policy = load_policy(given)
    media = Decoded.of(policy.decode(torch.zeros(1, *policy.latent_shape))).media()
    assert count_sizes(run_settings({"policy": given.model_dump()})).picture == media.nbytes
