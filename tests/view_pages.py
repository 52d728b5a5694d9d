"""What tests of the web pages share: their server, and pages in a browser that is watched."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.benchmarks.support.local_cluster import end
from playwright.sync_api import Browser, Page, sync_playwright
from support import ALONE, command

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SCRIPT = "<script>document.title='owned'</script><b>x</b>"
"""A prompt that must be drawn as text."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; without it, the test is skipped."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--no-proxy-server"]
        with playwright.chromium.launch(executable_path=CHROMIUM, args=arguments) as browser:
            yield browser


@contextmanager
def served(runs: Path) -> Iterator[str]:
    """Address at which `branchgrpo view` serves a folder of runs, which ends with the block."""
    serving = command("view", runs, "--port", "0")
    process = subprocess.Popen(serving, env=ALONE | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        yield found[0]
    finally:
        end(process)


@contextmanager
def watched(browser: Browser, base: str, **options: Any) -> Iterator[Page]:
    """A page in a window of its own, made with some options of Playwright's, whose addresses begin with `base`.

    When the block ends, there was no message in the console, no error, and no request to another address.
    """
    seen: list[str] = []
    with browser.new_context(base_url=base, **options) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith((base, "data:")) or seen.append(asked.url))
        yield page
    assert seen == []


def height_of_a_long_prompt(page: Page, selector: str) -> float:
    """How many pixels high the first of these places is when 5000 characters are in it. All of them can be reached."""
    place = page.locator(selector).first
    place.evaluate("place => { place.textContent = 'long '.repeat(1000); place.scrollTop = 1e6 }")
    assert place.evaluate("place => place.scrollTop + place.clientHeight >= place.scrollHeight - 1")
    return float(place.evaluate("place => place.getBoundingClientRect().height"))
