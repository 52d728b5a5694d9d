"""The list of shipped recipes, and the copies that users start from."""

import re
from io import StringIO
from pathlib import Path

import pytest
from branchgrpo.cluster.commands.recipes import copy, shipped, show
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import load_recipe
from branchgrpo.proto.settings import RunSettings
from rich.console import Console
from support import RECIPES

README = RECIPES.parent / "README.md"


def test_shipped_recipes_say_their_purpose_and_how_far_they_ran() -> None:
    listed = {recipe.name: recipe for recipe in shipped()}
    assert list(listed) == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert all(recipe.about for recipe in listed.values())
    for recipe in listed.values():  # as `show` says below its table
        assert recipe.weights == ("small random" if recipe.gpus else "its own"), recipe.name
        assert re.fullmatch(r"[\d.]+ hours" if recipe.gpus else r"\w+ minutes", recipe.time), recipe.name
        assert bool(recipe.gigabytes) == bool(recipe.gpus), recipe.name
        assert bool(recipe.judges) == ("judge" in recipe.about), recipe.name
    assert listed["sd15_aesthetic"].about == (
        "Stable Diffusion 1.5 with the LAION aesthetic predictor, LoRA, and DDIM with noise (as in DDPO)"
    )
    assert (listed["flux_hps_branch"].gpus, listed["flux_lora_24gb"].gpus, listed["glyphs"].gpus) == (16, 1, 0)


def test_recipes_are_listed_within_a_page_of_100_columns() -> None:
    """A judge has GPUs of its own; without GPUs, a run takes minutes."""
    with Console(width=100, file=StringIO(), record=True) as console:
        show(console)
    text = console.export_text()
    assert len(text.splitlines()) < 100
    for row in (
        "flux_kontext +8 [+] judge +34 +3.6 hours +FLUX",
        "flux_hps_branch +16 ",
        "glyphs +none +two minutes +The",
    ):
        assert re.search(rf"^ {row}", text, re.MULTILINE), row


def test_recipes_and_readme_plan_the_same_hours() -> None:
    rows = re.findall(r"^\| `(\w+)\.yaml` .* \| ([\d.]+ hours) \(planned\) \|", README.read_text(), re.MULTILINE)
    planned = {recipe.name: recipe.time for recipe in shipped() if recipe.gpus}
    assert planned == dict(rows)
    assert len(planned) > 12


def test_a_recipe_names_other_files_as_a_copy_can_find_them() -> None:
    """A copy lies in a folder of the user's, without those of the repository."""
    comments = "\n".join(re.findall("#.*", "\n".join(path.read_text() for path in sorted(RECIPES.glob("*.yaml")))))
    named = re.findall(r"branchgrpo init (\w+)", comments)
    assert {*named} <= {path.stem for path in RECIPES.glob("*.yaml")}
    assert len(named) > 3
    assert re.findall(r"recipes/\S+|\w+\.yaml", comments) == []
    assert re.findall(r"docs/\w+\.md(?! in the repository)", comments.replace("\n#", "")) == []


def without_places(settings: RunSettings) -> RunSettings:
    """Settings with the names of their prompt files in place of their paths."""
    prompts = settings.prompts
    names = {name: Path(getattr(prompts, name) or "").name for name in ("train", "held_out")}
    return settings.model_copy(update={"prompts": prompts.model_copy(update=names)})


@pytest.mark.parametrize("name", [path.stem for path in sorted(RECIPES.glob("*.yaml"))])
def test_a_copy_is_the_same_recipe_with_its_comments(name: str, tmp_path: Path) -> None:
    recipe, *prompts = copy(name, tmp_path / "mine.yaml")
    assert without_places(load_recipe(recipe)) == without_places(load_recipe(Path(name)))
    assert recipe.read_text().splitlines()[0] == (RECIPES / f"{name}.yaml").read_text().splitlines()[0]
    for file in prompts:
        assert file.parent == tmp_path
        assert file.read_text() == (RECIPES / file.name).read_text()
    if name == "glyphs":
        assert [load_recipe(recipe).prompts.held_out, load_recipe(recipe).prompts.train] == sorted(prompts)


def test_a_copy_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "glyphs_train.txt").write_text("mine")
    with pytest.raises(InputError, match=r"glyphs_train.txt exists, with other prompts; name a file in another folder"):
        copy("glyphs", tmp_path / "mine.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["glyphs_train.txt"]
    with pytest.raises(InputError, match=r"recipe glyph doesn't exist; did you mean 'glyphs'\?"):
        copy("glyph", tmp_path / "mine.yaml")
    with pytest.raises(InputError, match="folder .*nowhere doesn't exist"):
        copy("shapes", tmp_path / "nowhere" / "mine.yaml")


def test_copies_of_one_folder_share_their_prompts(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    prompts = {tmp_path / "glyphs_held_out.txt", tmp_path / "glyphs_train.txt"}
    assert {*copy("glyphs", first)} == {first, *prompts}
    assert copy("glyphs", second) == [second]
    with pytest.raises(InputError, match=r"first.yaml exists; name another file: branchgrpo init glyphs FILE"):
        copy("glyphs", first)
