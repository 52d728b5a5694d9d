"""The gallery's recipes: each can be run, has its picture, and is told of in the docs."""

import pytest
from branchgrpo.cluster.pages.gallery import CARDS, RECIPES
from branchgrpo.proto.recipe import load_recipe
from support import ROOT

PICTURES = {**{name: f"gallery_{name}.webp" for name in CARDS}, "tree": "tree.webp"}


def test_every_recipe_has_its_picture() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == PICTURES.keys()


@pytest.mark.parametrize("name", PICTURES)
def test_recipes_load_and_their_pictures_are_shown(name: str) -> None:
    assert load_recipe(RECIPES / f"{name}.yaml").name == name
    pages = "".join((ROOT / page).read_text() for page in ("README.md", "docs/gallery.md"))
    assert f"images/{PICTURES[name]}" in pages
