"""Pages that follow a run in a real browser: what is shown belongs together, and the keyboard keeps its place."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from branchgrpo.cluster.run.tree_record import TreeRecord, write
from playwright.sync_api import Browser, Page, Route
from run_folders import line, write_run
from small_records import small_record
from view_pages import served, watched

SEVERAL = 4
"""Seconds in which an open page has asked for changes several times."""


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
        yield page


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    """A run of three iterations, with an alarm."""
    return write_run(runs / tmp_path.name, logprob_abs_diff=1.0)


def append(folder: Path, file: str, content: dict[str, Any]) -> None:
    with (folder / f"{file}.jsonl").open("a") as lines:
        lines.write(json.dumps(content) + "\n")


def record(iteration: int, tree: int) -> TreeRecord:
    """A root with two children, a leaf below each: the later the tree, the further apart."""
    apart = np.array([-1.0, 1.0]) * (1 + tree)
    value = np.array([0.0, *apart, *apart])
    return small_record(iteration=iteration, tree=tree, prompt=f"prompt {tree}", value=value, rewards={"ocr": apart})


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


@pytest.mark.parametrize("asked", ["", "?iteration=1&tree=0"])
def test_a_drawn_tree_is_one_of_those_to_choose_from(page: Page, folder: Path, asked: str) -> None:
    for tree in (0, 1):
        write(folder, record(1, tree))
    page.goto(f"/trees/{folder.name}{asked}")
    for tree in (0, 1):
        write(folder, replace(record(11, tree), value=record(11, 1 - tree).value))
    page.locator("#tree-picker option", has_text="11").wait_for(state="attached")
    if asked:
        page.wait_for_timeout(1000 * SEVERAL)
    else:
        page.locator(".tree .about", has_text="of iteration 11:").wait_for()
    drawn = page.locator(".tree").get_attribute("id")
    about = page.locator(".tree .about").inner_text()
    shown = page.locator("#tree-picker select").input_value()
    assert (drawn, shown) == (("tree-0", "1") if asked else ("tree-0", "11"))
    assert f"of iteration {shown}:" in about
    assert f"tree={drawn.removeprefix('tree-')}" in page.locator(".cards [aria-current]").get_attribute("href")


def test_a_tree_folded_by_pointer_is_reached_by_keyboard(page: Page, folder: Path) -> None:
    write(folder, record(1, 0))
    page.goto(f"/trees/{folder.name}")
    page.locator(".node[data-n='0'] .dot").click()
    page.get_by_role("button", name="Fit").focus()
    reached = set()
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.n"))
    assert "0" in reached


def test_a_run_that_is_gone_is_told_of(browser: Browser, address: str, folder: Path) -> None:
    with browser.new_context(base_url=address) as context:  # unwatched: the browser reports a missing page
        page = context.new_page()
        page.goto(f"/overview/{folder.name}")
        shutil.rmtree(folder)
        page.get_by_text("no longer following").wait_for()


def test_a_chosen_run_that_is_gone_is_not_compared(page: Page, runs: Path, folder: Path) -> None:
    gone = write_run(runs / "gone")
    page.goto("/")
    for name in (folder.name, "gone"):
        page.get_by_label(f"choose {name}").check()
    shutil.rmtree(gone)
    page.get_by_label("choose gone").wait_for(state="detached")
    assert page.get_by_label(f"choose {folder.name}").is_checked()
    assert page.get_by_role("button", name="Compare").is_disabled()


def test_a_folded_tree_says_so(page: Page, folder: Path) -> None:
    """Also to those who don't see it."""
    write(folder, record(1, 0))
    page.goto(f"/trees/{folder.name}")
    root = page.locator(".node[data-n='0']")
    for expanded in ("true", "false", "true"):
        assert root.get_attribute("aria-expanded") == expanded
        root.press("Enter")
    assert page.locator(".node.leaf").first.get_attribute("aria-expanded") is None
