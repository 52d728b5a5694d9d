"""The docs say what the code does."""

import re
from collections.abc import Callable

import pytest
from branchgrpo.cluster.pages import files, metrics, recipe
from branchgrpo.proto.settings import RunSettings
from branchgrpo.proto.yaml12 import read_yaml
from branchgrpo.reward_service.scorers import SCORERS
from support import ROOT


@pytest.mark.parametrize(
    ("name", "page"), [("recipe", recipe.reference), ("metrics", metrics.page), ("files", files.page)]
)
def test_written_pages_are_those_of_the_code(name: str, page: Callable[[], str]) -> None:
    assert (ROOT / "docs" / f"{name}.md").read_text() == page(), "run `make docs`"


def test_every_file_is_on_the_map_with_its_purpose() -> None:
    folders = {
        file.parent for room in ("benchmarks", "cluster", "learner", "proto") for file in (ROOT / room).rglob("*.py")
    }
    folders |= {file.parent for room in ("reward_service", "rollout_workers") for file in (ROOT / room).rglob("*.py")}
    assert {folder.relative_to(ROOT).as_posix() for folder in folders} == files.ROOMS.keys()
    for folder in folders:
        for file in folder.glob("*.py"):
            assert files.first_line(file).endswith((".", ":")), f"{file} needs a first line that is a sentence"


def test_every_reward_stands_in_the_table_with_its_licence() -> None:
    rows = [row for row in (ROOT / "docs" / "rewards.md").read_text().splitlines() if row.count("|") == 7]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[2:]]  # below the heading and its line
    assert {name for row in cells for name in re.findall("`([a-z0-9_]+)`", row[0])} >= SCORERS.keys()
    assert all(row[1] and row[4] and row[5] for row in cells)


def test_recipes_of_rewards_are_recipes(run_settings: Callable[..., RunSettings]) -> None:
    """Every piece of a recipe on the page about rewards fits a recipe."""
    blocks = re.findall(r"^```yaml\n(\w.*?)^```", (ROOT / "docs" / "rewards.md").read_text(), re.MULTILINE | re.DOTALL)
    found = [content for block in blocks if "rewards" in (content := read_yaml(block))]
    assert len(found) > 8
    for content in found:
        run_settings({"execution": "ray", "policy.frames": 9, **content})


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
