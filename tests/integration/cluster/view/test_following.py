"""Pages that follow a run in a real browser: what is shown belongs together, and the keyboard keeps its place."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route
from run_folders import line, write_run
from view_pages import served, watched


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with served(runs) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with watched(browser, address) as page:
        page.set_default_timeout(10_000)
        yield page


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    """A run of three iterations, with an alarm."""
    return write_run(runs / tmp_path.name, logprob_abs_diff=1.0)


def append(folder: Path, file: str, content: dict[str, Any]) -> None:
    with (folder / f"{file}.jsonl").open("a") as lines:
        lines.write(json.dumps(content) + "\n")


def test_what_changes_while_a_page_loads_is_shown(page: Page, folder: Path) -> None:
    def change(route: Route) -> None:
        append(folder, "metrics", line(4))
        route.continue_()

    page.route("**/static/view.js*", change)
    page.goto(f"/overview/{folder.name}")
    page.get_by_text("iteration 4").wait_for()


def test_a_focused_table_stays_focused(page: Page, folder: Path) -> None:
    page.goto(f"/overview/{folder.name}")
    assert page.locator(".alarm").count()
    page.get_by_role("region", name="Rewards before and now").focus()
    append(folder, "evaluations", {"iteration": 5, "ocr": 0.875, "ocr_exact": 0.5})
    page.get_by_role("cell", name="0.875").first.wait_for()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Rewards before and now"
