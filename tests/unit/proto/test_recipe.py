"""Recipes: what is read is what was written, and mistakes are named."""

import math
from pathlib import Path

import pytest
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import dump_recipe, load_recipe, load_variant
from branchgrpo.proto.settings_errors import FORMER_NAMES, parse_settings, setting_paths
from support import RECIPES

GLYPHS = RECIPES / "glyphs.yaml"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(recipe: Path) -> None:
    assert load_recipe(recipe).name


def test_resolved_recipe_gives_the_same_settings_again(tmp_path: Path) -> None:
    settings = load_recipe(GLYPHS, ["schedule.sibling_spread=.inf", "learner.lora={rank: 4}"])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(settings))
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == settings
    assert math.isinf(again.schedule.sibling_spread)


def test_prompt_files_lie_beside_the_recipe() -> None:
    assert load_recipe(GLYPHS).prompts.train == RECIPES / "glyphs_train.txt"


@pytest.mark.parametrize(
    "given",
    [["prompts.train=mine.txt", "prompts.held_out=hf:a/b@test"], ["prompts={train: mine.txt, held_out: hf:a/b@test}"]],
)
def test_prompt_files_of_overrides_lie_in_the_current_folder(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = load_recipe(GLYPHS, given).prompts
    assert (prompts.train, str(prompts.held_out)) == (tmp_path / "mine.txt", "hf:a/b@test")


def test_an_override_replaces_its_setting_wholly() -> None:
    settings = load_recipe(GLYPHS, ["schedule.splits={1: 3}", "learner.clip_range=1e-3", "rewards.ocr.weight=2"])
    assert settings.schedule.splits == {1: 3}
    assert settings.learner.clip_range == 1e-3
    assert settings.rewards["ocr"].weight == 2
    assert settings.schedule.steps == 16


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.clip_rage=1", "unknown setting 'learner.clip_rage'; did you mean 'learner.clip_range'?"),
        ("learning_rate=1", "unknown setting 'learning_rate'; did you mean 'learner.optimizer.learning_rate'?"),
        ("iteratons=1", "unknown setting 'iteratons'; did you mean 'iterations'?"),
        ("rewards.ocr.wieght=1", "unknown setting 'rewards.ocr.wieght'; did you mean 'rewards.ocr.weight'?"),
        ("rollout.zzzzzz=1", "unknown setting 'rollout.zzzzzz'; valid here: trees_per_task, max_batch_rows"),
        ("rollout.max_batch_rows=0", "rollout.max_batch_rows is 0: input should be greater than 0"),
        ("schedule.splits={15: 2}", "schedule: splits names step 15"),
        ("schedule.splits={3: 1}", "a split has at least 2"),
        ("schedule.kernel=ode", "schedule.kernel is 'ode': input should be 'dance', 'flow', 'cps' or 'ddim'"),
        ("schedule.kernel=dancing", "schedule.kernel is 'dancing'"),
        ("learner.updates_per_iteration=3", "learner.updates_per_iteration is 3; it must divide"),
        ("pools.rewards.ocr.runtime_env={pip: [a], uv: [b]}", "pip and uv exclude each other; give one"),
        ("policy.sigmas=[1.0, 0.5, 0.5]", "policy.sigmas: [1.0, 0.5, 0.5] don't fall"),
        ("policy.sigmas=[1.0, 0.5]", "schedule.steps is 16; policy.sigmas has 2 noise levels: it must be 2"),
        (
            "policy={pretrained: glyphs, precision: float32, shift: 2.0, sigmas: [1]}",
            "policy.shift is 2.0 with policy.sigmas",
        ),
        ("policy.precision=bfloat16", "learner.zero_stage is 0 with policy.precision 'bfloat16'"),
        ("schedule.splits={}", "a tree needs at least two leaves"),
        ("schedule={roots: 4, splits: {}}", "every advantage would be 0"),
        ("schedule={roots: 4, splits: {}, sde_steps: []}", "schedule trains no step"),
        ("schedule.window=3", "schedule: window isn't a setting of the method 'branch_grpo', which has steps, splits"),
        ("schedule={method: mix_grpo, window: 30}", "window_start is 0 with a window of 30"),
        ("schedule={method: grpo}", "schedule.method is 'grpo'"),
        ("schedule.splits=many", "schedule.splits is 'many': input should be 'early', 'dense'"),
        ("pruning.depth={mode: fixed, window: 15}", "pruning.depth.window is 15 of 15 trained depths"),
        ("learner.keep_graph=true", "no pruning; learner.updates_per_iteration is 2"),
        ("pruning.depth={mode: sliding, stop: 12}", "stop is 12, and the window begins at depth 12 at its deepest"),
        ("schedule={method: tempflow_grpo, steps: 1}", "of 1 steps"),
        ("seed=18446744073709551616", "seed is 18446744073709551616: input should be less than"),
        ("rewards.ocr.weight=0", "all of ocr, ocr_exact have weight 0"),
        ("name=a/b", "'a/b' can't name a run"),
        ("learner.clip_range=.inf", "learner.clip_range is inf"),
        ("iterations", "'iterations' is no override; write key=value"),
        ("learner.optimizer={betas: 3}", "learner.optimizer.betas is 3"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(GLYPHS, [override])
    assert message in str(error.value)


def test_pruning_that_leaves_nothing_later_is_refused_at_once() -> None:
    """With the fixed window of pruning, which a window of noise reaches in iteration 7."""
    mix = "method: branch_grpo_mix, steps: 10, splits: {7: 4}, roots: 2, window: 2, window_stride: 1, window_every: 1"
    given = ["advantage.normaliser=group", f"schedule={{{mix}}}", "pruning.depth={mode: fixed, window: 2}"]
    with pytest.raises(InputError, match="window is 2, and in iteration 7 it leaves none of the 2 trained depths"):
        load_recipe(GLYPHS, given)
    assert load_recipe(GLYPHS, [*given, "pruning.depth.last_iteration=6"]).pruning.depth


def test_one_process_has_one_environment() -> None:
    with pytest.raises(InputError, match=r"pools\.rewards\.ocr\.runtime_env is set with execution 'in_process'"):
        load_recipe(GLYPHS, ["pools.rewards.ocr.runtime_env.env_vars={A: b}", "execution=in_process"])


def test_every_mistake_gets_a_line() -> None:
    with pytest.raises(InputError) as error:
        load_recipe(GLYPHS, ["iteratons=1", "rollout.max_batch_rows=0"])
    assert len(str(error.value).splitlines()) == 2


def test_a_resolved_recipe_needs_no_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray removes that of a job whose files it no longer needs, while runs on other nodes go on."""
    (tmp_path / "mine.yaml").write_text(dump_recipe(load_recipe(GLYPHS)))
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe(GLYPHS)


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(InputError, match="setting 'policy' is missing"):
        parse_settings({"name": "x", "prompts": {"train": "p"}, "rewards": {"ocr": {}}})


@pytest.mark.parametrize("content", ["name: [", "- a\n- b", "name: a\nname: b\n", ""])
def test_unreadable_recipes_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(InputError):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    for name, hint in {"nothing": "`branchgrpo recipes` lists", "glyfs": "did you mean 'glyphs'"}.items():
        with pytest.raises(InputError, match=f"recipe {tmp_path}/{name}.yaml doesn't exist; {hint}"):
            load_recipe(tmp_path / f"{name}.yaml")


def test_every_setting_is_documented() -> None:
    paths = dict(setting_paths())
    assert {"learner.optimizer.learning_rate", "rewards.<name>.weight", "learner.lora.rank"} <= paths.keys()
    sections = {path.rpartition(".")[0].removesuffix(".<name>") for path in paths}
    assert [path for path, field in paths.items() if not field.description and path not in sections] == []


def test_a_recipe_starts_from_its_base(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    recipe = tmp_path / "deeper" / "mine.yaml"
    recipe.write_text(
        f"base: {GLYPHS}\nname: mine\nschedule: {{steps: 12}}\nlearner: {{clip_range: 0.5}}\npolicy.height: 48\n"
    )
    (tmp_path / "again.yaml").write_text("base: deeper/mine.yaml\nname: again\n")
    base, mine, again = (load_recipe(path) for path in (GLYPHS, recipe, tmp_path / "again.yaml"))
    assert (mine.name, mine.schedule.steps, mine.schedule.eta, mine.learner.clip_range) == ("mine", 12, None, 0.5)
    assert (mine.policy.height, mine.policy.width) == (48, 64)
    assert mine.learner.model_copy(update={"clip_range": base.learner.clip_range}) == base.learner
    assert mine.prompts == again.prompts == base.prompts
    assert again == mine.model_copy(update={"name": "again"})


@pytest.mark.parametrize(
    ("text", "message"),
    [("base: none.yaml", "none.yaml doesn't exist.* \\(the base of"), ("base: it.yaml", "own base")],
)
def test_a_base_that_is_none_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "it.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "it.yaml")


def test_recipes_of_earlier_versions_load(tmp_path: Path) -> None:
    """They have steps in quotes, and no use of what is gone."""
    (tmp_path / "it.yaml").write_text("base: glyphs\nschedule: {splits: {'0': 2, '3': 2}, steps: 8, adapt: null}\n")
    assert load_recipe(tmp_path / "it.yaml").schedule.splits == {0: 2, 3: 2}


def test_a_recipe_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glyphs").mkdir()
    assert load_recipe(Path("glyphs")) == load_recipe(GLYPHS)
    (tmp_path / "mine.yaml").write_text("base: glyphs_mix_grpo\nname: mine\n")
    assert load_recipe(Path("mine.yaml")).schedule == load_recipe(RECIPES / "glyphs_mix_grpo.yaml").schedule
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="recipe mine is a folder"):
        load_recipe(Path("mine"))
    (tmp_path / "glyphs").rmdir()
    (tmp_path / "glyphs").write_text(f"base: {GLYPHS}\nname: mine\n")
    assert load_recipe(Path("glyphs")).name == "mine"
    for name, hint in {
        "glyph": "did you mean 'glyphs'",
        "zzz": "`branchgrpo recipes` lists those that go by their name",
    }.items():
        with pytest.raises(InputError, match=f"recipe {name} doesn't exist; {hint}"):
            load_recipe(Path(name))


def test_a_dotted_key_within_a_section_is_sent_to_the_top_level(tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text("base: glyphs\nlearner: {optimizer.learning_rate: 1e-3}\n")
    with pytest.raises(InputError) as error:
        load_recipe(tmp_path / "it.yaml")
    assert str(error.value) == (
        "unknown setting 'optimizer.learning_rate' in section 'learner'; "
        "write 'learner.optimizer.learning_rate' at the top level"
    )


def test_pools_of_rewards_that_the_base_alone_has_are_forgotten(tmp_path: Path) -> None:
    own = "base: glyphs\nrewards: {x: {function: 'a:b'}}\n"
    (tmp_path / "it.yaml").write_text(own + "pools: {rewards: {x: {cpus: 2}}}\n")
    assert load_recipe(tmp_path / "it.yaml").pools.rewards.keys() == {"x"}
    assert load_recipe(GLYPHS, ["rewards={x: {function: 'a:b'}}"]).pools.rewards == {}
    assert load_recipe(GLYPHS, ["rewards.x={function: 'a:b'}"]).pools.rewards.keys() == {"ocr"}
    (tmp_path / "it.yaml").write_text(own + "pools: {rewards: {y: {cpus: 2}}}\n")
    assert load_recipe(tmp_path / "it.yaml").pools.rewards.keys() == {"y"}, "which is the recipe's own mistake"


@pytest.mark.parametrize("layered", [False, True])
def test_a_dotted_key_names_a_step_of_the_splits(layered: bool, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: glyphs\nname: mine\n" + ("" if layered else "schedule.splits.3: 4\n"))
    settings = load_variant(tmp_path / "study.yaml", "mine.yaml", [{"schedule.splits.3": 4}] if layered else [])
    assert settings.schedule.splits == load_recipe(path, ["schedule.splits.3=4"]).schedule.splits
    assert settings.schedule.splits == {0: 2, 3: 4, 6: 2, 9: 2}


def test_a_key_that_stands_twice_in_dotted_form_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text("base: glyphs\npolicy: {height: 8, width: 8}\npolicy.height: 16\n")
    with pytest.raises(InputError, match=r"says 'policy\.height' twice"):
        load_recipe(tmp_path / "it.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x81PK", "isn't text in UTF-8"),
        ("name: é".encode("latin1"), "line 1 has the byte 0xe9.*latin1"),
        ("name: x".encode("utf-16-le"), "looks like UTF-16"),
        (b"base: 5", "base is 5 in recipe"),
        (b"base: [a]", "base is"),
        (b"base: it.yaml", "own base"),
        (b"base: .", "is a folder"),
        (b"base: a\nbase: b", "duplicate key"),
        (b"5: 3", "5"),
        (b"policy: 5\npolicy.height: 3", "policy is 5"),
        (b"&x {a: *x}", "contains itself"),
        (b"{a: " * 600 + b"}" * 600, "nested too deeply"),
        (b"? [1, 2]\n: 3", "1"),
    ],
)
def test_what_is_no_recipe_is_told_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "it.yaml")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_how_a_recipe_is_written(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text("base: glyphs\r\nname: é\r\n", encoding=encoding)
    assert load_recipe(tmp_path / "it.yaml").name == "é"


def test_every_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "it.yaml").write_text("base: ~/base.yaml\nrewards: {aesthetic: {pretrained: ~/a, backbone: ~/b}}\n")
    (tmp_path / "base.yaml").write_text("base: glyphs\nprompts: {train: ~/p.txt, held_out: ~/q.txt}\nruns: ~/runs\n")
    given = load_recipe(Path("~/it.yaml"), ["rollout.embeddings=~/e", "policy.pretrained=~/model"])
    assert given.prompts.train == tmp_path / "p.txt"
    assert given.prompts.held_out == tmp_path / "q.txt"
    assert (given.runs, given.rollout.embeddings) == (tmp_path / "runs", tmp_path / "e")
    assert given.policy.pretrained == str(tmp_path / "model")
    assert (given.rewards["aesthetic"].pretrained, given.rewards["aesthetic"].backbone) == (
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    )
    for installer in ("pip", "uv"):
        own = load_recipe(GLYPHS, [f"pools.rewards.ocr.runtime_env.{installer}=[~/a.whl, b]", "execution=ray"])
        assert getattr(own.pools.rewards["ocr"].runtime_env, installer) == [str(tmp_path / "a.whl"), "b"]
    assert load_recipe(GLYPHS, ["runs=~no-such-user/x"]).runs == Path("~no-such-user/x")
    paths = {path for path, field in setting_paths() if "path" in path or Path in (field.annotation,)}
    assert all(str(load_recipe(GLYPHS, [f"{path}=~/x"])).count("'~/x'") == 0 for path in paths)


@pytest.mark.parametrize(("former", "name"), FORMER_NAMES.items())
def test_a_former_name_is_an_error_that_says_the_new_one(former: str, name: str) -> None:
    (path,) = (path for path, _ in setting_paths() if path.rpartition(".")[2] == name)
    with pytest.raises(InputError, match=rf"unknown setting '.*{former}'; did you mean '{path}'"):
        load_recipe(Path("glyphs"), [f"{path.removesuffix(name)}{former}=1"])
