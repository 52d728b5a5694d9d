"""Pictures of the web pages about a run, taken in Chromium: `make screenshots RUN_FOLDER=runs/glyphs`."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from ..run.tree_record import read, recorded_trees

SECTIONS = ("overview", "pictures", "trees", "time")
SIZE = (1280, 900)


def take(run: Path, out: Path) -> None:
    """Write view_<section>.png of the run in a folder into the folder `out`."""
    serving = [sys.executable, "-m", "branchgrpo", "view", str(run), "--port", "0"]
    with subprocess.Popen(serving, stdout=subprocess.PIPE, text=True) as process, sync_playwright() as playwright:
        assert process.stdout
        found = re.search(r"http://\S+", process.stdout.readline())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
            for section in SECTIONS:
                address = f"{found[0] if found else ''}/{section}/{run.resolve().name}"
                page.goto(address + _of_most_spread(run) * (section == "trees"), wait_until="networkidle")
                height = page.evaluate("document.documentElement.scrollHeight")
                page.set_viewport_size({"width": SIZE[0], "height": height})  # charts are drawn when they are in sight
                page.wait_for_timeout(1500)
                page.screenshot(path=out / f"view_{section}.png")
                page.set_viewport_size({"width": SIZE[0], "height": SIZE[1]})
        finally:
            browser.close()
            process.terminate()


def _of_most_spread(run: Path) -> str:
    """The query for the recorded tree whose leaves' values differ most."""
    found = {place: read(path) for place, path in recorded_trees(run).items()}
    spread = {place: float(record.value[record.leaves].std()) for place, record in found.items()}
    return "?iteration={}&tree={}".format(*max(spread, key=spread.__getitem__)) if spread else ""


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
