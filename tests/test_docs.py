"""The docs say what the code does."""

import re
from pathlib import Path

from branchgrpo.cluster import series
from branchgrpo.cluster.reference import reference

ROOT = Path(__file__).parents[1]


def test_the_recipe_reference_is_that_of_the_settings() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text() == reference(), "run `make docs`"


def test_the_metrics_page_is_that_of_the_series() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == series.page(), "run `make docs`"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
