"""The docs say what the code does."""

import re

from branchgrpo.cluster.pages import files, metrics
from branchgrpo.cluster.pages.recipe import reference
from support import ROOT


def test_the_recipe_reference_is_that_of_the_settings() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text() == reference(), "run `make docs`"


def test_the_metrics_page_is_that_of_the_series() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics.page(), "run `make docs`"


def test_the_file_map_is_that_of_the_files() -> None:
    assert (ROOT / "docs" / "files.md").read_text() == files.page(), "run `make docs`"


def test_every_file_is_on_the_map_with_its_purpose() -> None:
    folders = {
        file.parent for room in ("benchmarks", "cluster", "learner", "proto") for file in (ROOT / room).rglob("*.py")
    }
    folders |= {file.parent for room in ("reward_service", "rollout_workers") for file in (ROOT / room).rglob("*.py")}
    assert {folder.relative_to(ROOT).as_posix() for folder in folders} == files.ROOMS.keys()
    for folder in folders:
        for file in folder.glob("*.py"):
            assert files.first_line(file).endswith((".", ":")), f"{file} needs a first line that is a sentence"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
