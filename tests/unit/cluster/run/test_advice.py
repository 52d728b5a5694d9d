"""Settings without effect: what is told, what is refused, and what is let be."""

import json
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.run.advice import advice, outweighed
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import load_recipe, save_recipe
from support import RECIPES, Settings
from typer.testing import CliRunner

WINDOW = {"method": "branch_grpo_mix", "steps": 8, "splits": {0: 2}, "window": 2}
FOREST = {"steps": 5, "roots": 4, "splits": {}, "sibling_spread": 2.0}
WIDTH, FIXED = {"mode": "parent_top1"}, {"mode": "fixed", "window": 1}
SLIDING = {"mode": "sliding", "window": 1, "stop": 2}
LOT = {"method": "flow_grpo_fast", "steps": 4, "group": 4, "ode_stride": 2}
LATE = {
    "schedule": {"steps": 6, "splits": {0: 2}, "sde_steps": [1]},
    "pruning.depth": {**SLIDING, "start": 5, "every": 1},
}
"""A window of depths that begins below all trained ones, and comes to the last of them in the fourth iteration."""


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"schedule": FOREST, "advantage.normaliser": "group"}, "schedule.sibling_spread has no effect"),
        ({"schedule.sibling_spread": 0.0}, "schedule.sibling_spread is 0: siblings are equal"),
        ({"schedule.ode_stride": 3}, "schedule.ode_stride has no effect: no two deterministic steps"),
        ({"schedule": {**WINDOW, "window_every": 2}}, "schedule.window_every has no effect"),
        ({"schedule": {**WINDOW, "window_end": "restart"}}, "schedule.window_end has no effect"),
        ({"schedule": {**WINDOW, "window_stride": 1}}, "the window doesn't move in 2 iterations"),
        ({"pruning.width": {**WIDTH, "first_iteration": 9}}, "pruning.width has no effect: it begins with iteration 9"),
        ({"pruning.width": {"mode": "extreme", "keep": 2}}, "pruning.width has no effect: it leaves out none of the"),
        ({"pruning.width": {**WIDTH, "keep": 2}}, "pruning.width.keep has no effect"),
        ({"pruning.depth": {**FIXED, "every": 2}}, "pruning.depth.every has no effect: pruning.depth.mode is 'fixed'"),
        ({"pruning.depth": {**FIXED, "direction": "deeper"}}, "pruning.depth.direction has no effect"),
        ({"pruning.depth": SLIDING}, "pruning.depth doesn't slide in the 2 iterations"),
        ({"advantage.fusion_beta": 2.0}, "advantage.fusion_beta has no effect"),
        (
            {"advantage": {"fusion": "path_softmax", "fusion_beta": 0.0}},
            "advantage.fusion 'path_softmax' has no effect",
        ),
        ({"learner.optimizer.warmup_updates": 4}, "learner.optimizer.warmup_updates is 4, and the run makes 4 updates"),
        (
            {"rollout.max_unscored_fraction": 0.5},
            "rollout.max_unscored_fraction has no effect: execution is 'in_process'",
        ),
        (
            {"rollout.max_unscored_fraction": 0.2, "execution": "ray"},
            "rollout.max_unscored_fraction has no effect: 0.2 of 4 trees",
        ),
        ({"prompts.held_out_count": 2}, "prompts.held_out_count has no effect"),
        ({"prompts.held_out": None, "evaluation": {"every": 2}}, "evaluation.every has no effect"),
        ({"learner.trust": 0.1}, "learner.trust has no effect: learner.passes is 1"),
        (
            {"learner.trust": 0.1, "learner.passes": 2, "learner.objective": "nft", "learner.clip_range": 1e-4},
            "learner.trust has no effect: learner.objective is 'nft'",
        ),
        ({"prompts.focus": 0.1}, "prompts.focus has no effect: 0.1 of 4 prompts is less than one"),
        ({"prompts.focus_decay": 0.5}, "prompts.focus_decay has no effect: prompts.focus is 0"),
        (
            {"learner.objective": "nft", "learner.clip_range": 2e-4},
            "learner.clip_range has no effect: learner.objective is 'nft'",
        ),
        (
            {"learner.trust_region": "divergence", "learner.clip_range": 2e-4},
            "learner.clip_range has no effect: learner.trust_region is 'divergence'",
        ),
        ({"learner.divergence_limit": 1e-4}, "learner.divergence_limit has no effect: learner.trust_region is 'clip'"),
        ({"learner.kl_scale": "flow_grpo"}, "learner.kl_scale has no effect: learner.kl_weight is 0"),
        (
            {"learner.objective": "awm", "learner.nft": {"strength": 2.0}},
            "learner.nft.strength has no effect: learner.objective is 'awm'",
        ),
        ({"learner.nft": {"strength": 2.0}}, "learner.nft has no effect: learner.objective is 'ratio'"),
        (
            {"learner.objective": "nft", "learner.clip_range": 1e-4, "advantage.edge_weight": "depth"},
            "advantage.edge_weight has no effect: learner.objective is 'nft'",
        ),
        (
            {"learner.objective": "nft", "learner.clip_range": 1e-4, "advantage.fusion": "path_softmax"},
            "advantage.fusion has no effect: learner.objective is 'nft'",
        ),
        (
            {"learner.objective": "nft", "learner.clip_range": 1e-4, "advantage.noise_weight": True},
            "advantage.noise_weight has no effect: learner.objective is 'nft'",
        ),
    ],
)
def test_what_has_no_effect_is_told(run_settings: Settings, changes: dict[str, Any], line: str) -> None:
    assert advice(run_settings()) == []
    (told,) = advice(run_settings(changes))
    assert told.startswith(line)


def test_what_has_an_effect_is_not(run_settings: Settings) -> None:
    for changes in (
        {"pruning.width": WIDTH},
        {"pruning.depth": {**SLIDING, "every": 1}},
        {"schedule.ode_stride": 3, "schedule.sde_steps": []},
        {"schedule": {**WINDOW, "window_stride": 1, "window_every": 1}},
        {"rollout.max_unscored_fraction": 0.25, "execution": "ray"},
        {"learner.optimizer.warmup_updates": 3},
        LATE | {"iterations": 4},
    ):
        assert advice(run_settings(changes)) == [], changes


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("own", {"function": "support:shade"}),
        ("pick_score", {"function": "support:shade"}),
        ("own", {"url": "http://rewards.example:8000"}),
        ("ocr", {}),
        ("shapes", {}),
    ],
)
@pytest.mark.parametrize("setting", ["pretrained", "tokenizer", "backbone", "instruction"])
def test_files_that_a_reward_never_reads(
    run_settings: Settings, name: str, place: dict[str, str], setting: str
) -> None:
    assert advice(run_settings({"rewards": {name: place}})) == []
    (told,) = advice(run_settings({"rewards": {name: {**place, setting: "models/clip"}}}))
    assert told.startswith(f"rewards.{name}.{setting} has no effect on scores: ")


def test_files_that_a_reward_may_read(run_settings: Settings) -> None:
    for name, place in (("pick_score", {}), ("ocr", {"scorer": "support:shade"})):
        assert advice(run_settings({"rewards": {name: {**place, "pretrained": "models/clip"}}})) == []


def test_a_window_that_never_comes_to_trained_depths(run_settings: Settings) -> None:
    (told,) = advice(run_settings(LATE | {"iterations": 3}))
    assert told == "pruning.depth has no effect: it leaves out none of the 4 trained edges"


def test_what_the_first_iteration_lacks_others_may_have(run_settings: Settings) -> None:
    for seed in range(4):  # of four steps the first two or the two in the middle are noisy, by lot
        assert advice(run_settings({"schedule": LOT, "seed": seed})) == []


def test_shipped_recipes_need_no_advice(tmp_path: Path) -> None:
    """Nor do they as a run folder keeps them, with all settings written out."""
    for path in sorted(RECIPES.glob("*.yaml")):
        assert advice(load_recipe(path)) == [], path
    assert advice(load_recipe(save_recipe(load_recipe(RECIPES / "glyphs_mix_grpo.yaml"), tmp_path))) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pruning.width": {**WIDTH, "first_iteration": 5, "last_iteration": 4}},
            "last_iteration is 4; it must be at le",
        ),
        ({"schedule.root_noise": "antithetic"}, "root_noise is 'antithetic' and the schedule has 1 root; pairs need"),
        ({"pruning.depth": {**FIXED, "start": 99}}, "pruning.depth.start is 99; of 5 steps the deepest edge"),
        ({"pruning.depth": {**FIXED, "start": 5}}, "pruning.depth.start is 5; of 5 steps the deepest edge"),
    ],
)
def test_what_can_not_mean_anything_is_refused(run_settings: Settings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_settings(changes)


@pytest.mark.parametrize("command", ["check", "train"])
def test_commands_tell(run_settings: Settings, tmp_path: Path, command: str) -> None:
    from branchgrpo.cluster.cli import app

    settings = run_settings({"advantage.fusion_beta": 2.0, "iterations": 1, "prompts.held_out": None})
    recipe = save_recipe(settings, tmp_path / "recipe")
    told = CliRunner().invoke(app, [command, str(recipe)])
    assert told.exit_code == 0, told.output
    assert "warning: advantage.fusion_beta has no effect: advantage.fusion is 'uniform'" in told.output


@pytest.mark.parametrize("combine", ["rewards", "advantages"])
def test_a_run_tells_that_a_reward_outweighs_another(run_settings: Settings, combine: str) -> None:
    """Two of the same scores, of which one weighs 20 times as much: it has 20 of 21 parts, and is meant to only where
    weights alone count."""
    from branchgrpo.cluster.cli import app

    rewards = {"bright": 20.0, "dark": -1.0}
    changes = {
        "rewards": {name: {"function": "support:shade", "weight": weight} for name, weight in rewards.items()},
        "advantage.combine": combine,
        "prompts.held_out": None,
    }
    settings = run_settings(changes)
    recipe = save_recipe(settings, settings.runs.parent / "recipe")
    told = CliRunner().invoke(app, ["train", str(recipe)])
    assert told.exit_code == 0, told.output
    warning = "warning: rewards.bright outweighs rewards.dark: within trees its weighted scores spread 20 times as far"
    assert " ".join(told.output.split()).count(warning) == (1 if combine == "rewards" else 0)
    for line in (settings.runs / settings.name / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["reward_shares"] == pytest.approx({"bright": 20 / 21, "dark": 1 / 21})


def test_a_reward_without_any_spread_outweighs_nothing(run_settings: Settings) -> None:
    settings = run_settings()
    assert outweighed(settings, {"ocr": 0.9, "other": 0.1}) == []
    assert outweighed(settings, {"ocr": 1.0, "other": 0.0}) == []
    assert len(outweighed(settings, {"ocr": 0.95, "other": 0.05})) == 1
    assert outweighed(run_settings({"advantage.combine": "advantages"}), {"ocr": 0.95, "other": 0.05}) == []


# Sizes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        {"steps": 50, "splits": dict.fromkeys(range(40), 2)},
        {"steps": 5, "splits": {0: 2**40}},
        {"steps": 5, "roots": 2**40, "splits": {}},
        {"steps": 10**15},
        {"steps": 99_999, "splits": {0: 2}},
        {"method": "dance_grpo", "steps": 5, "group": 2**40},
        {"method": "tree_grpo", "steps": 90_000, "window": 80_000},
        {"method": "tempflow_grpo", "steps": 5, "children": 2**62},
        {"method": "mix_grpo", "steps": 10, "window": 10**15},
        {"method": "flow_grpo_fast", "steps": 10, "window": 10**15},
        {"method": "flow_grpo_fast", "steps": 1000, "window": 2, "group": 101},  # some iterations have fewer nodes
        {"method": "tree_grpo", "steps": 1000, "window": 2, "children": 11},
    ],
)
def test_schedules_that_would_fill_the_memory_are_refused(run_settings: Settings, schedule: dict[str, Any]) -> None:
    normaliser = {"advantage.normaliser": "group"}
    with pytest.raises(InputError, match=r"max_nodes|window|schedule\.\w+ is \d+: input should be less than or equal"):
        run_settings({"schedule": schedule, **normaliser})


def test_the_limit_can_be_raised(run_settings: Settings) -> None:
    large = {"steps": 3, "splits": {0: 60_000}}
    with pytest.raises(
        InputError, match="a tree has more than 100,000 nodes; take fewer .* or raise schedule.max_nodes"
    ):
        run_settings({"schedule": large})
    assert run_settings({"schedule": {**large, "max_nodes": 200_000}}).schedule.build().leaves == 60_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule.eta": 1e300}, "eta is 1e\\+300"),
        ({"schedule.eta": 1e-300}, "eta is 1e-300; the kernel 'dance' takes values from 0.0001 to 10"),
        ({"schedule.sibling_spread": 1e300}, "sibling_spread is 1e\\+300; numbers go up to 1e\\+30"),
        ({"learner.optimizer.learning_rate": 1e300}, "learning_rate is 1e\\+300; numbers go up to"),
        ({"rewards": {"ocr": {"weight": -1e300}}}, "weight is -1e\\+300; numbers go up to"),
        ({"advantage.fusion_beta": 1e300}, "fusion_beta is 1e\\+300; numbers go up to"),
        ({"policy.shift": 1e300}, "policy.shift is 1e\\+300: input should be less than or equal to 100"),
        ({"prompts.per_iteration": 2**40}, "prompts.per_iteration is 1099511627776: input should be less than"),
        ({"evaluation.samples": 2**40}, "evaluation.samples is 1099511627776: input should be less than"),
    ],
)
def test_numbers_out_of_all_bounds_are_refused(run_settings: Settings, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_settings(changes)


def test_independent_siblings_are_still_infinite_spread(run_settings: Settings) -> None:
    assert run_settings({"schedule.sibling_spread": float("inf")}).schedule.build().sibling_spread == float("inf")
