"""Many runs in one chart, in a real browser and a narrow window: each can be told from the others."""

from pathlib import Path

from playwright.sync_api import Browser
from run_folders import write_run
from support import until
from view_pages import served, watched

RUNS = 12


def test_each_of_many_runs_can_be_told_by_its_curve(browser: Browser, tmp_path: Path) -> None:
    names = [f"run {number} with a long name" for number in range(RUNS)]
    for name in names:
        write_run(tmp_path / name)
    narrow = {"width": 390, "height": 800}
    with served(tmp_path) as address, watched(browser, address, viewport=narrow) as page:
        page.goto("/compare?run=" + "&run=".join(names))
        for chart in ("held-out-prompts-ocr", "sampled-leaves-ocr"):
            place = page.locator(f"#{chart} .plot")
            place.scroll_into_view_if_needed()
            until(lambda place=place: place.locator(".legendtext").count() == RUNS)
            looks = place.evaluate("place => place.data.map(({line, marker}) => JSON.stringify([line, marker]))")
            assert len(set(looks)) == RUNS
            frame = place.locator(".legend .bg").bounding_box()
            last = place.locator(".legendtext").last.bounding_box()
            assert frame["y"] + frame["height"] >= last["y"] + last["height"]
