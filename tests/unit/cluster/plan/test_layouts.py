"""The layouts of a run: candidates, and the best of them."""

from typing import Any

import pytest
from branchgrpo.cluster.on_ray.placement import demands
from branchgrpo.cluster.plan.costs import Costs
from branchgrpo.cluster.plan.layouts import Layout, balance_of, gpu_rewards, layouts, plan
from branchgrpo.cluster.plan.rows import learner_rows
from branchgrpo.proto.recipe import SHIPPED, load_recipe
from branchgrpo.proto.settings import RunSettings
from branchgrpo.proto.settings_errors import parse_settings

FLUX = load_recipe(SHIPPED / "flux_hps_branch.yaml")
COSTS = Costs(forward_row=0.1, learn_row=0.4, decode_picture=0.03, score_pictures={"hps": 0.002})


def recipe(**sections: Any) -> RunSettings:
    """32 trees of eight leaves, a window for each four, on reward models without GPUs."""
    content = {
        "name": "planned",
        "policy": {"pretrained": "none"},
        "prompts": {"train": "none", "per_iteration": 32},
        "rewards": {"ocr": {}},
        "schedule": {"steps": 5, "splits": {0: 2, 1: 2, 2: 2}},
        "rollout": {"trees_per_task": 1},
        "learner": {"window_trees": 4, "rows_per_micro_batch": 4},
    }
    return parse_settings(content | sections)


@pytest.mark.parametrize("gpus", [1, 2, 8, 100])
def test_every_layout_uses_all_gpus_as_a_recipe_can(gpus: int) -> None:
    found = list(layouts(FLUX, gpus, 0.4))
    assert len(set(found)) == len(found) > 0
    for layout in found:
        whole = [layout.ranks, layout.workers * (layout.placement == "separate"), layout.replicas * (not layout.beside)]
        assert sum(whole) == gpus
        pools = layout.apply(FLUX).pools
        reserved = [
            (pools.learner.count, pools.learner.gpus),
            (pools.rewards["hps"].replicas, pools.rewards["hps"].gpus),
        ]
        if layout.placement == "separate":
            reserved.append((pools.rollout_workers.count, pools.rollout_workers.gpus))
        assert sum(count * each for count, each in reserved) <= gpus + 1e-9


def test_workers_and_ranks_are_divided_as_the_work_is() -> None:
    """Sampling takes three times as long as learning; with staleness, both go on at once."""
    settings = recipe()
    schedule, rows = settings.schedule.build(), learner_rows(settings)
    costs = Costs(forward_row=0.1, learn_row=0.1 * schedule.forward_passes / rows / 3)
    balance = balance_of(settings, costs, rows)
    assert balance == pytest.approx(0.75)
    separate = [layout for layout in layouts(settings, 8, balance) if layout.staleness]
    best = plan(settings, separate, lambda layout: costs).best[0]
    assert (best.layout.workers, best.layout.ranks) == (6, 2)
    tree = schedule.forward_passes * 0.1
    assert best.seconds == pytest.approx(32 / 6 * tree, rel=0.15)
    assert best.phases["sampling"] == pytest.approx(32 / 6 * tree, rel=0.01)


def test_the_best_come_first_with_what_limits_them() -> None:
    made = plan(FLUX, list(layouts(FLUX, 8, 0.4)), lambda layout: COSTS)
    seconds = [own.seconds for own in made.best]
    assert len(seconds) == 5
    assert seconds == sorted(seconds)
    assert made.best[0].layout == Layout("colocated", 8, 8, 0, 1, 0.15, True)
    assert max(made.best[0].gains, key=lambda part: made.best[0].gains[part]) == "learner"
    assert made.best[0].limit.startswith("learner (1.")
    pooled = {(own.layout.workers, own.layout.staleness, own.layout.beside) for own in made.best}
    assert len(pooled) == 5  # none differs in replicas alone, which these scores don't need


def test_layouts_that_cannot_be_are_left_out_with_reasons() -> None:
    """Kept graphs need one rank that samples too."""
    changes = ["keep_graph=true", "gradient_checkpointing=false", "updates_per_iteration=1"]
    own = [*(f"learner.{change}" for change in changes), "pruning={}", "placement=colocated", "pools.learner.count=1"]
    kept = load_recipe(SHIPPED / "flux_hps_branch.yaml", own)
    made = plan(kept, list(layouts(kept, 2, 0.5)), lambda layout: COSTS)
    assert {(own.layout.placement, own.layout.ranks) for own in made.best} == {("colocated", 1)}
    reasons = {reason: {layout.placement for layout in left} for reason, left in made.dropped.items()}
    assert {reason.rpartition("; ")[2]: left for reason, left in reasons.items()} == {
        "pools.learner.count is 2": {"colocated"},
        "placement is 'separate'": {"separate"},
    }


def test_layouts_without_room_are_left_out() -> None:
    def misfit(settings: RunSettings) -> str | None:
        return "no room" if settings.pools.learner.count > 2 else None

    made = plan(FLUX, list(layouts(FLUX, 4, 0.5)), lambda layout: COSTS, misfit)
    assert {own.layout.ranks for own in made.best} <= {1, 2}
    assert made.dropped.keys() == {"no room"}


def test_one_gpu_samples_and_learns_in_turns() -> None:
    assert {layout.placement for layout in layouts(FLUX, 1, 0.5)} == {"colocated"}
    own = Layout("colocated", 1, 1, 0, 1, 0.15, True).apply(FLUX)
    assert (own.pools.learner.gpus, own.pools.rewards["hps"].gpus) == (0.85, 0.15)


def test_rewards_without_a_gpu_stay_without() -> None:
    assert gpu_rewards(recipe()) == []
    for layout in layouts(recipe(), 4, 0.5):
        assert layout.apply(recipe()).pools.rewards == recipe().pools.rewards


def test_the_replicas_of_a_recipe_are_simulated() -> None:
    """Those of models without GPUs, which a layout doesn't change: of OCR one, whatever JPEG has."""
    rewards = {"ocr": {}, "jpeg_compressibility": {}}
    costs = Costs(score_pictures={"ocr": 1.0})
    seconds = {}
    for ocr, jpeg in ((1, 1), (1, 4), (4, 1)):
        pools = {"rewards": {"ocr": {"replicas": ocr}, "jpeg_compressibility": {"replicas": jpeg}}}
        made = plan(recipe(rewards=rewards, pools=pools), [Layout("colocated", 4, 4)], lambda layout: costs)
        seconds[ocr, jpeg] = made.best[0].seconds
    assert seconds[1, 1] == pytest.approx(32 * 8, rel=0.01)
    assert seconds[1, 4] == pytest.approx(seconds[1, 1])
    assert seconds[4, 1] == pytest.approx(seconds[1, 1] / 4, rel=0.05)


def test_models_on_gpus_have_the_replicas_of_a_layout() -> None:
    pools = {"rewards": {"hps": {"gpus": 1}, "ocr": {"replicas": 2}}}
    settings = recipe(rewards={"hps": {}, "ocr": {}}, pools=pools)
    costs = Costs(score_pictures={"hps": 1.0, "ocr": 0.1})
    for replicas in (1, 4):
        layout = Layout("separate", 2, 2, 0, replicas, 0.5)
        (planned,) = plan(settings, [layout], lambda layout: costs).best
        assert planned.seconds == pytest.approx(32 * 8 / replicas, rel=0.05)
        assert planned.settings.pools.rewards["hps"].replicas == replicas
        assert planned.settings.pools.rewards["ocr"].replicas == 2


@pytest.mark.parametrize("cpus", [0.5, None])
def test_layouts_on_cores_leave_room_for_reward_models(cpus: float | None) -> None:
    settings = recipe(pools={"rewards": {"ocr": {"cpus": cpus, "replicas": 2}}})
    for cores in (3, 8):
        found = list(layouts(settings, cores, 0.5))
        assert len(found) > 2
        for layout in found:
            reserved = demands(layout.apply(settings, "cpus"))
            assert cores - 0.1 < sum(demand.count * demand.each["CPU"] for demand in reserved) <= cores + 1e-9
