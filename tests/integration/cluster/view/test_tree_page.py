"""The page of a run's trees in Chromium: what it shows is what the files hold, by pointer and by keyboard."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.cluster.run.tree_record import TreeRecord, read, recorded_trees, write
from branchgrpo.cluster.view.tree_drawing import number
from branchgrpo.proto.learned_tree import EdgeState
from branchgrpo.proto.recipe import save_recipe
from branchgrpo.proto.settings import RunSettings
from playwright.sync_api import Browser, Page
from support import Settings, done_by
from view_pages import SCRIPT, height_of_a_long_prompt, served, watched

REWARDS = {"rewards": {"shade": {"function": "support:shade"}}}
NFT = {
    "name": "nft",
    "schedule": {"method": "nft", "steps": 4, "group": 4},
    "learner.objective": "nft",
    "advantage": {"normaliser": "group", "clip": 1.2},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("seen")


def recorded(settings: RunSettings) -> Path:
    """The folder of a run that has recorded the trees of an iteration."""
    folder = settings.runs / settings.name
    folder.mkdir(parents=True)
    save_recipe(settings, folder)
    with closing(InProcessLoop(settings, [SCRIPT, "two", "three", "four"])) as loop:
        for record in loop.iterate(1).trees:
            write(folder, record)
    return folder


@pytest.fixture(scope="module")
def run(settings_in: Settings, root: Path) -> Path:
    """A run that has pruned some edges, and has a broken file of a tree."""
    width = {"mode": "parent_top1", "keep_last_split": False}
    folder = recorded(settings_in(root, {**REWARDS, "pruning.width": width}))
    (folder / "trees" / "000001-0009.safetensors").write_bytes(b"cut off")
    return folder


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    with served(run.parent) as address:
        yield address


@pytest.fixture(scope="module")
def page(address: str, run: Path, record: TreeRecord, browser: Browser) -> Iterator[Page]:
    """That tree of the run."""
    with watched(browser, address) as page:
        page.goto(f"/trees/{run.name}?iteration=1&tree={record.tree}")
        yield page


@pytest.fixture(scope="module")
def record(run: Path) -> TreeRecord:
    """The tree whose prompt is a script."""
    records = [read(path) for place, path in recorded_trees(run).items() if place != (1, 9)]
    return next(record for record in records if record.prompt == SCRIPT)


def test_figures_are_those_of_the_file(page: Page, record: TreeRecord) -> None:
    pruned = np.flatnonzero(record.state == EdgeState.PRUNED)
    assert len(pruned)
    for node in range(len(record.parent)):
        shown = page.locator(f".node[data-n='{node}']")
        facts = shown.get_attribute("aria-label").split(" · ")
        assert f"value {number(record.value[node])}" in facts
        if record.depth[node]:
            assert f"advantage {number(record.advantage[node], signed=True)}" in facts
            assert f"weight {number(record.weight[node])}" in facts
            assert f"log-probability {number(record.logprob[node])}" in facts
            assert f"ratio {number(record.ratio[node], 6)}" in facts
        assert page.locator(f".edge.pruned[data-n='{node}'] .mark").count() == (node in pruned)
        assert ("pruned" in facts) == (node in pruned)
    for leaf, score in zip(record.leaves, record.rewards["shade"], strict=True):
        assert page.locator(f".node[data-n='{leaf}'] .score").text_content() == number(score)
        # Drawn in full, and not a broken picture.
        assert page.evaluate(
            "async (url) => { const one = new Image(); one.src = url; await one.decode(); return one.width }",
            page.locator(f".node[data-n='{leaf}'] image").get_attribute("href"),
        )


def test_a_prompt_is_text_and_a_broken_file_is_named(page: Page) -> None:
    assert page.locator(".tree h2").text_content() == SCRIPT
    assert page.locator(".cards .prompt", has_text=SCRIPT).count() == 1
    assert page.title() != "owned"
    assert "000001-0009.safetensors" in page.locator(".problems").text_content()


def test_a_long_prompt_leaves_room_for_the_tree(browser: Browser, address: str, run: Path, record: TreeRecord) -> None:
    with watched(browser, address) as page:
        page.goto(f"/trees/{run.name}?iteration=1&tree={record.tree}")
        assert height_of_a_long_prompt(page, ".tree h2") < 200


def test_hover_and_keyboard_show_figures_and_choose_a_path(page: Page, record: TreeRecord) -> None:
    def told() -> str:
        return page.locator(".node-facts").inner_text()

    pruned = int(np.flatnonzero(record.state == EdgeState.PRUNED)[0])
    page.locator(f".edge[data-n='{pruned}'] .near").dispatch_event("pointerover")
    assert number(record.advantage[pruned], signed=True) in told()
    assert "pruned" in told()
    best = int(record.leaves[record.value[record.leaves].argmax()])
    page.locator(f".node[data-n='{best}']").focus()
    page.keyboard.press("ArrowLeft")
    parent = int(record.parent[best])
    assert number(record.ratio[parent], 6) in told()
    for leaf in record.leaves:
        page.locator(f".node[data-n='{leaf}']").focus()
        page.keyboard.press("Enter")
        path, at = set(), int(leaf)
        while at >= 0:
            path.add(at)
            at = int(record.parent[at])
        lit = page.eval_on_selector_all(".node.on", "all => all.map((one) => Number(one.dataset.n))")
        assert set(lit) == path
        with_pictures = [node for node in sorted(path) if node in record.pictures]
        assert page.locator(".path img").count() == len(with_pictures) == 3  # two splits and the leaf


def test_a_subtree_folds_and_stretches_fold(page: Page, record: TreeRecord) -> None:
    height = page.locator(".drawing").bounding_box()["height"]
    width = page.locator(".drawing").bounding_box()["width"]
    page.locator(".node[data-n='1'], .node[data-n='3']").last.focus()  # the first split below the root
    page.keyboard.press("Enter")
    assert page.locator(".drawing").bounding_box()["height"] < height
    page.keyboard.press("Enter")
    assert page.locator(".drawing").bounding_box()["height"] == pytest.approx(height, abs=30)
    page.check("[data-tree=fold]")
    assert page.locator(".drawing").bounding_box()["width"] < width
    page.uncheck("[data-tree=fold]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_shows_fusion(page: Page, record: TreeRecord, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.check("[data-tree=fusion]")
    root = page.locator(".node[data-n='0'] .fused")
    assert root.text_content() == number(record.value[0])
    assert page.evaluate("getComputedStyle(document.querySelector('.of-values')).display") != "none"
    page.uncheck("[data-tree=fusion]")


def test_an_export_draws_all_trees_without_a_server(
    run: Path, record: TreeRecord, browser: Browser, tmp_path: Path
) -> None:
    file = tmp_path / "run.html"
    done = done_by("view", run, "--export", file)
    assert done.returncode == 0, done.stdout + done.stderr
    with watched(browser, file.as_uri(), offline=True) as page:
        page.goto(file.as_uri())
        assert page.locator(".tree").count() == 4
        tree = page.locator(f"#tree-{record.tree}")
        assert tree.locator("h2").text_content() == SCRIPT
        tree.locator(f".node[data-n='{record.leaves[0]}']").press("Enter")
        assert tree.locator(".path img").count() == 3
        facts = tree.locator(".node-facts").inner_text()
        assert number(record.value[record.leaves[0]]) in facts
        assert page.evaluate("Promise.all([...document.querySelectorAll('.tree img')].map((one) => one.decode()))")


def test_with_nft_merits_take_the_place_of_advantages(
    settings_in: Settings, root: Path, browser: Browser, address: str
) -> None:
    folder = recorded(settings_in(root, {**REWARDS, **NFT}))
    record = read(recorded_trees(folder)[1, 0])
    best, worst = record.merit.argmax(), record.merit.argmin()
    assert 0 <= record.merit[worst] < 0.5 < record.merit[best] <= 1
    with watched(browser, address) as page:
        page.goto("/trees/nft?iteration=1&tree=0")
        facts = [
            page.locator(f".node[data-n='{node}']").get_attribute("aria-label").split(" · ")
            for node in range(len(record.parent))
        ]
        assert not any(fact.startswith(("advantage", "ratio")) for own in facts for fact in own)
        for leaf, merit, score in zip(record.leaves, record.merit, record.rewards["shade"], strict=True):
            assert {f"merit {number(merit)}", f"shade {number(score)}"} <= {*facts[leaf]}
        assert page.locator(".key").first.text_content() == "merit"
        colours = [
            page.locator(f".edge[data-n='{record.leaves[one]}'] .line").evaluate("one => getComputedStyle(one).stroke")
            for one in (best, worst)
        ]
        assert colours[0] != colours[1]
