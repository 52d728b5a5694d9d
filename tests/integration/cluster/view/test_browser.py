"""The pages about a real run in a real browser: what it shows, and what it never does. The tests share a run."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.samples import parse, samples_file
from branchgrpo.cluster.train import train
from playwright.sync_api import Browser, Page
from rich.console import Console
from support import Settings, command, until
from view_pages import SCRIPT, height_of_a_long_prompt, served, watched

SECTIONS = ("overview", "pictures", "trees", "time", "recipe")
GROUNDS: dict[Literal["light", "dark"], str] = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}
FOCUSABLE = "a[href], button:not(:disabled), input:not([type=hidden]), select, [tabindex='0']"


@pytest.fixture(scope="module")
def folder(settings_in: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations with three evaluations, among whose held-out prompts is a script, and a copy of it."""
    root = tmp_path_factory.mktemp("view")
    (root / "held_out.txt").write_text(f"{SCRIPT}\n472\n")
    changes = {"prompts.held_out": str(root / "held_out.txt"), "evaluation.every": 1, "logging.samples_every": 1}
    run = train(settings_in(root, changes), RunDisplay(Console(quiet=True)))
    shutil.copytree(run, run.parent / "copy")
    return run


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder.parent) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    with watched(browser, address) as page:
        yield page


def drawn(page: Page, chart: str, curve: str) -> dict[str, Any]:
    """A curve as the browser has drawn it."""
    place = page.locator(f"#{chart} .plot")
    place.scroll_into_view_if_needed()
    until(lambda: place.evaluate("place => place.classList.contains('js-plotly-plot')"))
    found = place.evaluate("place => place.data.map(({name, x, y}) => ({name, x: [...x], y: [...y]}))")
    return next(one for one in found if one["name"] == curve)


def test_the_browser_shows_what_the_folder_holds(page: Page, folder: Path) -> None:
    run = RunFolder(folder)
    evaluations, metrics = run.lines("evaluations"), run.lines("metrics")
    page.goto("/")
    row = page.locator("#run-run td").all_inner_texts()
    assert row[1:3] == ["run", "finished"]
    assert row[6:8] == [f"{evaluations[0]['ocr']:.3f}", f"{evaluations[-1]['ocr']:.3f}"]
    page.get_by_role("link", name="run", exact=True).click()
    leaves = drawn(page, "reward-ocr", "leaves")
    assert leaves["y"] == pytest.approx([line["rewards"]["ocr"]["mean"] for line in metrics], rel=1e-5)
    held_out = drawn(page, "reward-ocr", "held-out")
    assert held_out == {
        "name": "held-out",
        "x": [0, 1, 2],
        "y": pytest.approx([line["ocr"] for line in evaluations], rel=1e-5),
    }
    assert drawn(page, "chart-gradient-norm", "gradient norm")["y"] == pytest.approx(
        [line["gradient_norm"] for line in metrics], rel=1e-5
    )
    best = page.locator("#checkpoints tr.best td").first.inner_text()
    assert int(best) == run.best_checkpoints()[0]


def test_pictures_follow_the_slider_and_prompts_are_text(page: Page, folder: Path) -> None:
    run = RunFolder(folder)
    page.goto("/pictures/run?order=prompt")
    assert page.locator("#held-out .prompt").all_inner_texts() == [SCRIPT, "472"]
    assert page.title() == "run · BranchGRPO"
    slider = page.get_by_label("Evaluation")
    slider.focus()
    for key, position in [("ArrowLeft", 1), ("ArrowLeft", 0), ("ArrowRight", 1), ("ArrowRight", 2)]:
        slider.press(key)
        scores = run.evaluation(run.lines("evaluations")[position]).rewards["ocr"]
        assert page.locator(".now").all_inner_texts() == [f"{score:.3f}" for score in scores]
        source = page.locator("[data-between]").first.get_attribute("src") or ""
        assert f"iteration-00000{position}" in source
    until(lambda: page.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth)"))


def test_long_prompts_leave_room_for_pictures(page: Page) -> None:
    page.goto("/pictures/run")
    for place in ("#held-out .prompt", ".sampled .prompt"):
        assert height_of_a_long_prompt(page, place) < 200


def test_samples_of_a_chosen_iteration_are_those_of_the_file(page: Page, folder: Path) -> None:
    kept = parse((folder / samples_file(1)).read_bytes())
    page.goto("/pictures/run?order=prompt")
    page.locator("#samples select").select_option("1")
    page.wait_for_url("**/pictures/run?*samples=1*")
    assert "order=prompt" in page.url
    prompts = list(dict.fromkeys(kept.prompts))
    assert page.locator(".sampled .prompt").all_inner_texts() == prompts
    for prompt, shown in zip(prompts, page.locator(".sampled").all(), strict=True):
        of_prompt = [score for own, score in zip(kept.prompts, kept.rewards["ocr"], strict=True) if own == prompt]
        expected = [f"{score:.3f}" for score in sorted(of_prompt, reverse=True)]
        assert shown.locator("figcaption").all_inner_texts() == expected
        shown.scroll_into_view_if_needed()
    until(lambda: page.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth)"))


def test_pages_are_narrow_quiet_and_reached_by_keyboard(browser: Browser, address: str) -> None:
    """In light and in dark; all but the first are loaded in the dark."""
    with watched(browser, address, viewport={"width": 390, "height": 800}) as page:
        for path in ("/", *(f"/{name}/run" for name in SECTIONS), "/compare?run=run&run=copy"):
            page.goto(path)
            for place in page.locator(".plot").all():
                place.scroll_into_view_if_needed()
            for scheme, ground in GROUNDS.items():
                page.emulate_media(color_scheme=scheme)
                assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
                assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
            assert reached(page) == set(range(page.locator(FOCUSABLE).count())), path


def reached(page: Page) -> set[int]:
    """Numbers of the elements that the Tab key leads to, among those that can be used and seen."""
    page.evaluate(f"""() => {{
        window.usable = [...document.querySelectorAll("{FOCUSABLE}")];
        window.reached = new Set(usable.map((_, i) => i).filter((i) => !usable[i].checkVisibility()));
        document.addEventListener("focusin", (event) => reached.add(usable.indexOf(event.target)));
        document.body.focus();
    }}""")
    for _ in range(page.locator(FOCUSABLE).count() + 5):
        page.keyboard.press("Tab")
    return {number for number in page.evaluate("[...reached]") if number >= 0}


def test_charts_are_read_by_arrow_keys(page: Page, folder: Path) -> None:
    page.goto("/overview/run")
    page.locator("#chart-clip-fraction .plot").focus()
    page.keyboard.press("End")
    value = RunFolder(folder).lines("metrics")[-1]["clip_fraction"]
    read = page.locator("#chart-clip-fraction .reading").inner_text()
    label, found = read.split(", clip fraction ")
    assert label == "iteration 2"
    assert float(found) == pytest.approx(value, rel=1e-5)


def test_runs_are_filtered_sorted_and_compared_by_keyboard(page: Page) -> None:
    page.goto("/")
    names = page.locator("#runs tbody tr:visible a")
    page.get_by_label("Filter").fill("cop")
    assert names.all_inner_texts() == ["copy"]
    page.get_by_label("Filter").fill("")
    head = page.get_by_role("button", name="Run", exact=True)
    head.press("Enter")
    assert names.all_inner_texts() == ["copy", "run"]
    head.press("Enter")
    assert names.all_inner_texts() == ["run", "copy"]
    for name in ("choose run", "choose copy"):
        page.get_by_label(name).press("Space")
    page.get_by_role("button", name="Compare").press("Enter")
    page.wait_for_url("**/compare?*")
    assert page.get_by_role("heading", level=1).inner_text() == "Compare 2 runs"
    assert drawn(page, "held-out-prompts-ocr", "copy")["x"] == [0, 1, 2]


def test_an_export_opens_without_a_server(browser: Browser, folder: Path, tmp_path: Path) -> None:
    made = subprocess.run(command("view", folder, "--export", tmp_path / "run.html"), capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with watched(browser, "file:", offline=True) as page:
        page.goto(f"file://{tmp_path}/run.html")
        held_out = drawn(page, "reward-ocr", "held-out")["y"]
        assert held_out == pytest.approx([line["ocr"] for line in RunFolder(folder).lines("evaluations")], rel=1e-5)
        assert SCRIPT in page.locator(".prompt").all_inner_texts()
        assert page.evaluate("[...document.images].every((one) => one.loading === 'lazy' || one.naturalWidth)")


def test_pages_follow_a_run_that_continues(page: Page, folder: Path) -> None:
    """Last in this file, for it changes the run. What was chosen, sorted and focused stays."""
    page.goto("/")
    page.get_by_label("choose copy").check()
    page.get_by_label("choose copy").focus()
    other = page.context.new_page()
    other.goto("/overview/run")
    assert drawn(other, "reward-ocr", "leaves")["x"] == [1, 2]
    continued = subprocess.Popen(command("train", folder, "--resume", "iterations=3"), stdout=subprocess.DEVNULL)
    try:
        until(lambda: len(drawn(other, "reward-ocr", "leaves")["x"]) == 3)
        page.get_by_role("cell", name="3 / 3").wait_for()
    finally:
        assert continued.wait(200) == 0
    newest = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert drawn(other, "reward-ocr", "leaves")["y"][-1] == pytest.approx(newest["rewards"]["ocr"]["mean"], rel=1e-5)
    other.get_by_text("finished since").wait_for()
    other.goto("/recipe/run")
    assert "iterations: 2 → 3" in other.locator("#changes").inner_text()
    assert page.get_by_label("choose copy").is_checked()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "choose copy"
