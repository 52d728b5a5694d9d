"""Pictures of the web pages about a run, taken in Chromium: `make screenshots RUN_FOLDER=runs/glyphs`."""

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

SECTIONS = ("overview", "pictures", "time")
WIDTH, HEIGHT = 1280, 900
LARGE = 150_000
"""Bytes beyond which a picture is written with some loss."""


@contextmanager
def browser(runs: Path, width: int) -> Iterator[tuple[Page, str]]:
    """A browser's page, so many pixels wide, and the address of `branchgrpo view` with the runs in a folder."""
    serving = [sys.executable, "-m", "branchgrpo", "view", str(runs), "--port", "0"]
    with subprocess.Popen(serving, stdout=subprocess.PIPE, text=True) as process, sync_playwright() as playwright:
        assert process.stdout
        found = re.search(r"http://\S+", process.stdout.readline())
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            yield chromium.new_page(viewport={"width": width, "height": HEIGHT}), found[0] if found else ""
        finally:
            chromium.close()
            process.terminate()


def photograph(page: Page, selector: str, out: Path) -> None:
    """Write an element of the page as a small WebP, in a window so high that all charts are drawn."""
    width = page.evaluate("innerWidth")
    page.set_viewport_size({"width": width, "height": page.evaluate("document.documentElement.scrollHeight")})
    page.wait_for_timeout(1500)
    picture = Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")
    page.set_viewport_size({"width": width, "height": HEIGHT})
    picture.save(out, lossless=True, quality=100, method=6)
    if out.stat().st_size > LARGE:
        picture.save(out, quality=85, method=6)


def take(run: Path, out: Path) -> None:
    """Write view_<section>.webp of the run in a folder into the folder `out`."""
    with browser(run, WIDTH) as (page, address):
        for section in SECTIONS:
            page.goto(f"{address}/{section}/{run.resolve().name}", wait_until="networkidle")
            photograph(page, "body", out / f"view_{section}.webp")


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
