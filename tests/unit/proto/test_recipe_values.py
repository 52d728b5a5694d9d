"""The values of a recipe: what may be written, as which type it is read, and that all else is one error."""

from contextlib import suppress
from pathlib import Path

import pytest
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import dump_recipe, load_recipe
from branchgrpo.proto.settings_errors import parse_settings, setting_paths
from branchgrpo.proto.yaml12 import read_yaml, write_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import RECIPES

GLYPHS = RECIPES / "glyphs.yaml"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        *((f"name={text}", text) for text in ("042", "on", "sweep #4", "a=b", "null", "1e3", "é", "'q'")),
        *((f"policy.negative_prompt={text}", text) for text in ("no", "blurry: bad", "", "[a", "~", " x ")),
        ("policy.adapter=null", None),
        ("policy.adapter=1:30", "1:30"),
        ("policy.device=cuda:1", "cuda:1"),
        ("pools.learner.labels.zone=042", "042"),
        ("iterations=010", 10),
        ("learner.optimizer.learning_rate=3E-4", 3e-4),
        ("learner.optimizer.learning_rate=1", 1.0),
        ("learner.lora.rank=4", 4),
        ("policy.shift=null", None),
        ("schedule.splits={1: 3}", {1: 3}),
        ("schedule.splits.1=3", {0: 2, 1: 3, 3: 2, 6: 2, 9: 2}),
        ("schedule.splits=dense", "dense"),
    ],
)
def test_an_override_is_the_text_that_was_typed_or_yaml(override: str, value: object) -> None:
    content = load_recipe(GLYPHS, [override]).model_dump()
    for key in override.partition("=")[0].removesuffix(".1").split("."):
        content = content[key]
    assert (content, type(content)) == (value, type(value))


@pytest.mark.parametrize(
    "override",
    [
        *(f"iterations={value}" for value in ("true", "5.0", "1e3", "1:30", "'5'", "???", "", "0x" + "f" * 9999)),
        *(f"learner.optimizer.learning_rate={value}" for value in ("yes", "true", "'1'", "1" + "0" * 400, ".nan")),
        *(f"schedule.splits={value}" for value in ("{0: 2, 0: 3}", "{0: 2, '0': 3}", "{true: 2}", "{1: true}", "[")),
        *(f"staleness={value}" for value in ("true", "1.0", "2")),
        *("learner.keep_graph=yes", "learner.keep_graph=1", "policy={height: '5'}", "schedule.sde_steps=[1.0]"),
        *("name.x=3", "runs.x=3", "a..b=3", ".=3", "=3", "iterations", "base=glyphs", "1=1", "learner.zero_stage={"),
    ],
)
def test_an_override_of_another_type_is_an_error_that_names_it(override: str) -> None:
    with pytest.raises(InputError) as error:
        load_recipe(GLYPHS, [override])
    assert override.partition("=")[0].split(".")[0] in str(error.value)
    assert str(GLYPHS) not in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize("text", ["name: 042", "name: 1e3", "name: true", "rewards: {1e3: {function: 'a:b'}}"])
def test_texts_that_yaml_reads_as_something_else_need_quotes(text: str, tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text(f"base: glyphs\n{text}\n")
    with pytest.raises(InputError, match=r"name is .*write it in quotes|rewards"):
        load_recipe(tmp_path / "it.yaml")


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0"), min_size=1),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.floats(-1e9, 1e9), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(0, 2**63 - 1),
    st.floats(min_value=0, exclude_min=True, allow_infinity=False),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_can_be_set_is_the_same_in_the_run_folder(
    tmp_path: Path, name: str, weights: dict[str, float], text: str, seed: int, rate: float
) -> None:
    content = read_yaml(GLYPHS.read_text()) | {"name": name, "seed": seed}
    content["rewards"] = {key: {"weight": weight, "function": "a:b"} for key, weight in weights.items()}
    content["policy"]["negative_prompt"] = text
    content["learner"]["optimizer"]["learning_rate"] = rate
    try:
        given = parse_settings(content)
    except InputError:
        return  # a name that can't be used
    (tmp_path / "recipe.yaml").write_text(dump_recipe(given), encoding="utf-8")
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again.model_copy(update={"prompts": given.prompts}) == given


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "is empty"),
        *((name, "has a slash") for name in ("a/b", "a\\b", "/")),
        *((name, "has signs that can't be seen") for name in ("a\nb", "a\0", "\x1b[31m", "a\u200bb", "a\tb")),
        *((name, "begins with a dot, a dash or a blank") for name in (".", "..", ".x", "-x", " x")),
        ("x ", "ends with a blank"),
        ("é" * 101, "is longer than 200 bytes"),
    ],
)
def test_names_that_can_t_work_are_refused(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"^name: .* can't name a run and its folder: it {reason}$"):
        load_recipe(GLYPHS, [f"name={name}"])


@pytest.mark.parametrize("name", ["é", "[red]x", "a#b", "a b", "😀", "iteration", "x.", "é" * 100, "a=b+c", "~", "042"])
def test_all_other_names_are_taken(name: str) -> None:
    assert load_recipe(GLYPHS, [f"name={name}"]).name == name


@pytest.mark.parametrize("key", ["name", "policy.negative_prompt", "policy.pretrained", "rewards.ocr.url"])
def test_half_a_character_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="half a character|can't be seen"):
        load_recipe(GLYPHS, [f"{key}=a\udcff"])


PATHS = [path.replace("<name>", "ocr") for path, _ in setting_paths()]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-5, 20)
    | st.floats()
    | st.text(st.characters(exclude_categories=[]), max_size=8)
    | st.sampled_from([10**400, -(10**30), "dense", "1e3", "~/x", "hf:x", "glyphs", "ocr", "a:b"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(SCALARS | st.sampled_from([path.rpartition(".")[2] for path in PATHS]), inner, max_size=3)
    ),
    max_leaves=6,
)
TYPED = st.text(st.characters(exclude_categories=[]), max_size=12) | VALUES.map(write_yaml) | VALUES.map(repr)


def is_one_error_or_settings(path: Path, overrides: list[str]) -> None:
    with suppress(InputError):
        load_recipe(path, overrides)


@given(st.lists(st.tuples(st.sampled_from(PATHS) | st.text(max_size=8), TYPED), max_size=3))
@settings(max_examples=150)
def test_any_overrides_give_settings_or_one_error(given: list[tuple[str, str]]) -> None:
    is_one_error_or_settings(GLYPHS, [f"{key}={value}" for key, value in given])


@given(st.dictionaries(st.sampled_from(PATHS) | st.text(max_size=8), VALUES, max_size=3) | VALUES | st.binary())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_recipe_gives_settings_or_one_error(tmp_path: Path, content: object) -> None:
    own = {"base": "glyphs"} | content if isinstance(content, dict) else content
    (tmp_path / "it.yaml").write_bytes(own if isinstance(own, bytes) else write_yaml(own).encode())
    is_one_error_or_settings(tmp_path / "it.yaml", [])
