"""Runs that go well and badly, and the pictures of them in docs/gallery.md and README: `make gallery`."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .screenshots import browser, photograph

RECIPES = Path(__file__).parents[2] / "docs" / "gallery"
WIDTH, TREE_WIDTH = 1000, 940
"""Pixels: as wide as GitHub shows a page, so that texts keep their size."""


@dataclass(frozen=True)
class Card:
    """What to show of a run: its alarms, two charts, and below them the first six of some pictures."""

    charts: tuple[str, str]
    section: str = "pictures"
    """The section that the pictures are taken from."""
    query: str = ""
    pictures: str = ".pairs"
    """Selects their list in the section."""


CARDS = {
    "learning": Card(("reward-ocr", "chart-ratio"), "trees", "iteration=1", ".cards"),
    "flat": Card(("reward-ocr", "chart-ratio")),
    "gamed": Card(("reward-jpeg_compressibility", "reward-ocr"), query="reward=ocr&order=loss"),
    "collapsed": Card(("reward-ocr", "chart-ratio"), query="order=loss"),
    "ratio_off": Card(("chart-log-probability-difference", "chart-ratio"), query="order=loss"),
}
"""Recipe in docs/gallery -> what its picture shows."""
KEEP = """
async ([charts, address, pictures]) => {
  const main = document.querySelector("main"), text = await (await fetch(address)).text();
  const list = new DOMParser().parseFromString(text, "text/html").querySelector(pictures);
  list.replaceChildren(...[...list.children].slice(0, 6));
  list.querySelectorAll("[loading]").forEach((picture) => picture.removeAttribute("loading"));
  const grid = Object.assign(document.createElement("div"), { className: "charts" });
  grid.append(...charts.map((name) => document.getElementById(name)));
  main.replaceChildren(main.querySelector("h1"), ...main.querySelectorAll(".alarm"), grid, list);
  document.querySelector("header").remove();
  main.style.padding = "1rem 1.25rem";
}
"""
"""Leaves of a run's overview what a card shows, and adds pictures of another section."""


def train(name: str, runs: Path) -> None:
    """Run a recipe of docs/gallery in the folder `runs`, or what is left of it, in one process on one thread."""
    if (runs / name / "summary.json").is_file():
        return
    changes = [f"runs={runs}", "resume=auto", "execution=in_process", "threads=1"]
    command = [sys.executable, "-m", "branchgrpo", "train", f"{name}.yaml", *changes]
    subprocess.run(command, cwd=RECIPES, check=True)  # there, an adapter of the gallery is found


def main(runs: Path, out: Path) -> None:
    """Make the runs that aren't there yet, then gallery_<recipe>.webp of each, and tree.webp."""
    names = [*CARDS, "tree"]
    for number, name in enumerate(names, start=1):
        print(f"run {number} of {len(names)}: {name}", flush=True)
        train(name, runs)
    with browser(runs, WIDTH) as (page, address):
        for name, card in CARDS.items():
            page.goto(f"{address}/overview/{name}", wait_until="networkidle")
            page.evaluate(KEEP, [card.charts, f"/{card.section}/{name}?{card.query}", card.pictures])
            photograph(page, "main", out / f"gallery_{name}.webp")
    with browser(runs, TREE_WIDTH) as (page, address):
        page.goto(f"{address}/trees/tree", wait_until="networkidle")  # it shows the tree of the largest spread
        page.check("[data-tree=fold]")
        page.hover(".node.split.on >> nth=2")
        page.add_style_tag(content=".tree { padding: 1rem } .tree .controls { display: none }")
        photograph(page, ".tree", out / "tree.webp")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
