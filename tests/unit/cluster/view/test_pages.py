"""The pages about a run and about several: what they show, from files whose content is known."""

import json
import re
from collections.abc import Callable
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from branchgrpo.cluster.run import samples
from branchgrpo.cluster.run.evaluation import Evaluation
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.samples import TreeSamples
from branchgrpo.cluster.view import export
from branchgrpo.cluster.view.files import FileCache
from branchgrpo.cluster.view.runs import Runs
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.safetensors_codec import encode
from branchgrpo.proto.yaml12 import read_yaml, write_yaml
from fastapi.testclient import TestClient
from PIL import Image
from run_folders import line

Make = Callable[..., Path]
SCRIPT = "<script>alert(1)</script>"


def charts(page: str) -> dict[str, dict[str, Any]]:
    """Title -> figure, of the charts in a page."""
    found = re.findall(r"<h3>(.*?)</h3>.*?<script type=\"application/json\">(.*?)</script>", page, re.DOTALL)
    return {unescape(title): json.loads(text) for title, text in found}


def trace(page: str, title: str, name: str) -> dict[str, Any]:
    return next(one for one in charts(page)[title]["traces"] if one["name"] == name)


def test_curves_are_those_of_the_metrics(make_run: Make, client: TestClient) -> None:
    folder = make_run("one")
    lines = [line(number, clip_fraction=number / 8, gradient_norm=float("nan")) for number in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    page = client.get("/overview/one").text
    assert "Shares of rewards" not in charts(page)  # the run began with a version that noted none
    assert charts(page)["Clip fraction"]["x"] == [1, 2, 3]
    assert trace(page, "Clip fraction", "clip fraction")["y"] == [0.125, 0.25, 0.375]
    assert trace(page, "Gradient norm", "gradient norm")["y"] == [None, None, None]
    assert trace(page, "Edges", "pruned")["y"] == [10, 10, 10]
    held_out = trace(page, "ocr", "held-out")
    assert (held_out["x"], held_out["y"]) == ([0, 3], [0.25, 0.75])
    band = [trace(page, "ocr", f"leaves: {end}")["y"] for end in ("minimum", "maximum")]
    assert band == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize(
    ("objective", "shown"),
    [("nft", set()), ("awm", {"Clip fraction"}), ("ratio", {"Clip fraction", "Ratio", "Log-probability difference"})],
)
def test_ratios_are_drawn_where_there_are_any(
    make_run: Make, client: TestClient, objective: str, shown: set[str]
) -> None:
    folder = make_run("one")
    recipe = read_yaml((folder / "recipe.yaml").read_text())
    recipe["learner"] = {**recipe.get("learner", {}), "objective": objective}
    (folder / "recipe.yaml").write_text(write_yaml(recipe))
    drawn = charts(client.get("/overview/one").text)
    assert {"Clip fraction", "Ratio", "Log-probability difference"} & drawn.keys() == shown


def test_the_shares_of_several_rewards_are_stacked(make_run: Make, client: TestClient) -> None:
    make_run("one", reward_shares={"ocr": 0.75, "other": 0.25})
    page = client.get("/overview/one").text
    assert [trace(page, "Shares of rewards", name)["y"] for name in ("ocr", "other")] == [[0.75] * 3, [0.25] * 3]


def test_every_chart_has_a_name_of_its_own(make_run: Make, client: TestClient) -> None:
    """By it the browser knows which one to draw again."""
    names = ["kl", "Ratio", "edges", "a_b", "a-b", "A-b"]
    folder = make_run("one", rewards={name: {"mean": 0.5} for name in names}, kl=0.5)
    rewards = "".join(f"  {name}: {{weight: 1.0}}\n" for name in names)
    (folder / "recipe.yaml").write_text(f"name: one\nrewards:\n{rewards}")
    make_run("two", rewards={name: {"mean": 0.5} for name in names})
    for page in ("/overview/one", "/compare?run=one&run=two"):
        found = re.findall('<figure class="chart" id="(.*?)">', client.get(page).text)
        assert len(set(found)) == len(found) > len(names)


@pytest.mark.parametrize("asked", ["trees/one?iteration=", "time/one?iteration=", "pictures/one?show="])
def test_numbers_of_any_length_may_be_asked_for(asked: str, make_run: Make, client: TestClient) -> None:
    make_run()
    for digits in (1, 20, 5000):
        assert client.get(f"/{asked}{'9' * digits}").status_code == 200


def test_a_change_is_marked_where_it_took_effect(make_run: Make, client: TestClient) -> None:
    folder = make_run("one")
    change = {"iteration": 2, "time": "now", "setting": "learner.clip_range", "before": 0.1, "now": 0.2}
    (folder / "changes.jsonl").write_text(json.dumps(change) + "\n")
    assert charts(client.get("/overview/one").text)["Ratio"]["marks"] == [[2, "learner.clip_range: 0.1 → 0.2"]]
    assert "learner.clip_range: 0.1 → 0.2" in client.get("/recipe/one").text


def test_curves_are_compared_over_what_they_cost(make_run: Make, client: TestClient) -> None:
    make_run("one")
    make_run("two", seconds=20.0, forward_passes=7)
    for over, last in (("iterations", [3, 3]), ("seconds", [30, 60]), ("forward passes", [300, 21])):
        page = client.get("/compare", params={"run": ["one", "two"], "over": over}).text
        for name, cost in zip(("one", "two"), last, strict=True):
            assert trace(page, "ocr, held-out prompts", name)["x"] == [0, cost]
            assert trace(page, "ocr, sampled leaves", name)["x"][-1] == cost


def test_only_differences_of_recipes_are_shown(make_run: Make, client: TestClient) -> None:
    make_run("one")
    other = make_run("two") / "recipe.yaml"
    other.write_text(other.read_text().replace("clip_range: 0.01", "clip_range: 1e-3"))
    page = client.get("/compare", params={"run": ["one", "two"]}).text
    table = page[page.index('id="differences"') :]
    assert re.findall(r"<th scope=\"row\".*?>(.*?)</th>", table) == ["learner.clip_range"]
    assert re.findall(r"<td.*?>(.*?)</td>", table) == ["0.01", "0.001"]


@pytest.fixture
def pictured(make_run: Make) -> Path:
    """A run with two evaluations of two prompts, of which the second gained; one prompt is a script."""
    folder = make_run("one")
    (folder / "evaluations.jsonl").unlink()
    for iteration, scores in ((0, [0.5, 0.0]), (1, [0.5, 0.5]), (2, [0.25, 1.0])):
        media = np.full((2, 4, 6, 3), 10 * iteration, np.uint8)
        media[1] += 1
        rewards = {name: np.array(scores) for name in ("ocr", "ocr_exact")}
        RunFolder(folder).add_evaluation(iteration, Evaluation([SCRIPT, "472"], Media(media), rewards), {"ocr": "way"})
    return folder


def test_pictures_are_those_of_the_evaluation_by_gain(pictured: Path, client: TestClient) -> None:
    page = client.get("/pictures/one").text
    prompts = [unescape(text) for text in re.findall(r'<span class="prompt">(.*?)</span>', page)]
    assert prompts == ["472", SCRIPT]
    assert SCRIPT not in page
    scores = [json.loads(unescape(text)) for text in re.findall(r'data-scores="(.*?)"', page)]
    assert scores == [["0.000", "0.500", "1.000"], ["0.500", "0.500", "0.250"]]
    pairs = re.findall(r'<img src="(\S+)" alt="before".*?<img src="(\S+)" alt="now".*?data-between="(.*?)"', page)
    for index, (before, now, between) in zip((1, 0), pairs, strict=True):
        for iteration, address in enumerate([before, *(own["src"] for own in json.loads(unescape(between))), now]):
            picture = np.asarray(Image.open(BytesIO(client.get(unescape(address)).content)))
            assert (picture == 10 * iteration + index).all()


def test_parts_of_a_picture_are_sent_when_asked_for(pictured: Path, client: TestClient) -> None:
    newest = max((pictured / "evaluations").iterdir()).stem

    def get(**headers: str) -> tuple[int, bytes, str | None]:
        found = client.get("/picture/one", params={"of": f"evaluation/{newest}/0"}, headers=headers)
        assert found.headers["accept-ranges"] == "bytes"
        return found.status_code, found.content, found.headers.get("content-range")

    code, data, _ = get()
    size = len(data)
    assert code == 200
    tag = client.get("/picture/one", params={"of": f"evaluation/{newest}/0"}).headers["etag"]
    assert get(range="bytes=0-1") == (206, data[:2], f"bytes 0-1/{size}")
    assert get(range=f"bytes=0-{size + 5}") == (206, data, f"bytes 0-{size - 1}/{size}")
    assert get(range="bytes=3-") == (206, data[3:], f"bytes 3-{size - 1}/{size}")
    assert get(range="bytes=-3", **{"if-range": tag}) == (206, data[-3:], f"bytes {size - 3}-{size - 1}/{size}")
    for beyond in (f"bytes={size}-", "bytes=-0"):
        assert get(range=beyond) == (416, b"", f"bytes */{size}")
    for other in ("bytes=0-1,3-4", "bytes=-", "bytes=4-2", "lines=0-1"):
        assert get(range=other) == (200, data, None)
    assert get(range="bytes=0-1", **{"if-range": '"older"'}) == (200, data, None)


def test_samples_are_shown_by_prompt_and_score(pictured: Path, client: TestClient) -> None:
    media = np.arange(6, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 6, 3), np.uint8)
    for iteration, scores in ((5, [0.25, 0.75, 0.5]), (10, [0.5, 0.125, 1.0])):
        rewards = {"ocr": np.array(scores), "ocr_exact": -np.array(scores)}
        other = TreeSamples(1, "472", {"ocr": np.array([0.0, 1.0, 0.5]), "ocr_exact": np.ones(3)}, Media(media[3:]))
        samples.write(pictured, iteration, [TreeSamples(0, SCRIPT, rewards, Media(media[:3])), other])

    def shown(**asked: object) -> dict[str, list[tuple[int, str]]]:
        """Prompt -> grey level and score of its pictures."""
        page = client.get("/pictures/one", params=asked).text
        found = {}
        for part in page.split('<section class="sampled">')[1:]:
            pairs = re.findall(r'<img src="(.*?)".*?"scores">(.*?)<', part)
            levels = [np.asarray(Image.open(BytesIO(client.get(unescape(one)).content))).max() for one, _ in pairs]
            prompt = unescape(re.findall(r'class="prompt">(.*?)<', part)[0])
            found[prompt] = list(zip(levels, [score for _, score in pairs], strict=True))
        return found

    assert shown() == {
        SCRIPT: [(2, "1.000"), (0, "0.500"), (1, "0.125")],
        "472": [(4, "1.000"), (5, "0.500"), (3, "0.000")],
    }
    assert shown(samples=5)[SCRIPT] == [(1, "0.750"), (2, "0.500"), (0, "0.250")]
    assert shown(samples=5, reward="ocr_exact")[SCRIPT] == [(0, "-0.250"), (2, "-0.500"), (1, "-0.750")]
    (pictured / "evaluations.jsonl").rename(pictured / "kept")
    assert client.get("/pictures/one").text.count('name="reward"') == 1, "it can be chosen without evaluations"
    newest = pictured / samples.samples_file(10)
    newest.write_bytes(newest.read_bytes()[:100])
    page = client.get("/pictures/one").text
    assert "<code>samples/iteration-000010.safetensors</code> can&#39;t be read" in page
    assert client.get("/picture/one", params={"of": "samples/10/0"}).status_code == 404
    assert client.get("/picture/one", params={"of": "samples/10"}).headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    "name", ["evaluation/../../x/0", "evaluation/x/0", "samples/5", "samples/5/0", "samples/..", "tree/1", "", "x"]
)
def test_pictures_that_are_not_there_are_refused(pictured: Path, client: TestClient, name: str) -> None:
    assert client.get("/picture/one", params={"of": name}).status_code == 404


def test_an_evaluation_of_no_prompts_has_no_pictures(pictured: Path, client: TestClient) -> None:
    path = min((pictured / "evaluations").iterdir())
    path.write_bytes(encode({"media": np.zeros((1, 2, 2, 3), np.uint8)}))
    assert client.get(f"/picture/one?of=evaluation/{path.stem}/0").status_code == 404


def test_a_damaged_evaluation_is_told_of(pictured: Path, client: TestClient) -> None:
    newest = max((pictured / "evaluations").iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    page = client.get("/pictures/one").text
    assert f"<code>evaluations/{newest.name}</code> can&#39;t be read" in page
    assert "472" in page
    assert client.get("/picture/one", params={"of": f"evaluation/{newest.stem}/0"}).status_code == 404


def test_an_export_holds_everything_in_one_file(pictured: Path, client: TestClient, tmp_path: Path) -> None:
    (run,) = Runs(pictured).all()
    export.export(run, tmp_path / "run.html")
    page = (tmp_path / "run.html").read_text()
    ours = page[: page.index("<script>\n")]  # before the scripts, which name addresses that they never load
    assert not re.search(r"(src|href)=\"(?!data:|#)", ours)
    assert charts(page) == charts(client.get("/overview/one").text)
    shown = re.findall(r"data:image/webp;base64,[\w+/=]+", ours)
    assert len(shown) == len(set(shown)) == 6, "two prompts at three evaluations, each once"
    assert SCRIPT not in page
    with pytest.raises(InputError, match=r"run\.html"):
        export.export(run, tmp_path / "run.html")


def test_an_export_refuses_an_iteration_without_anything(pictured: Path, tmp_path: Path) -> None:
    (run,) = Runs(pictured).all()
    with pytest.raises(InputError, match="7"):
        export.export(run, tmp_path / "run.html", iteration=7)
    assert not (tmp_path / "run.html").exists()


def test_kept_files_are_bounded_and_never_stale(tmp_path: Path) -> None:
    cache, reads = FileCache(max_bytes=100), []

    def parse(data: bytes) -> bytes:
        reads.append(data)
        return data

    for number in range(10):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 40)
        cache.read(tmp_path / str(number), parse)
    assert cache.read(tmp_path / "9", parse) == b"\x09" * 40
    assert len(reads) == 10, "the newest is kept"
    cache.read(tmp_path / "0", parse)
    assert len(reads) == 11, "the oldest had to go"
    (tmp_path / "9").write_bytes(b"other")
    assert cache.read(tmp_path / "9", parse) == b"other"


def test_an_alarm_of_another_trust_region_has_its_own_limit(make_run: Make, client: TestClient) -> None:
    """What `guard` clips isn't a ratio, and its range says nothing of log-probabilities."""
    folder = make_run("one", logprob_abs_diff=5e-7)
    recipe = (folder / "recipe.yaml").read_text()
    for region, raised in (("clip", True), ("guard", False)):
        learner = f"learner: {{clip_range: 2.e-6, trust_region: {region}}}"
        (folder / "recipe.yaml").write_text(recipe.replace("learner: {clip_range: 0.01}", learner))
        assert ("Log-probabilities are apart" in client.get("/overview/one").text) == raised


def test_a_compared_curve_ends_with_the_newest_iteration(make_run: Make, client: TestClient) -> None:
    for name in ("one", "two"):
        make_run(name, iterations=1499)
    page = client.get("/compare", params={"run": ["one", "two"], "over": "iterations"}).text
    curves = [one["x"] for figure in charts(page).values() for one in figure["traces"] if len(one.get("x", ())) > 2]
    assert curves
    assert all((x[0], x[-1]) == (1, 1499) and len(x) <= 500 for x in curves)


def test_pages_of_an_earlier_version_are_not_kept(
    make_run: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("one")
    (run,) = Runs(tmp_path / "runs").all()
    before = run.stamp()
    assert run.stamp() == before
    monkeypatch.setattr("branchgrpo.cluster.view.runs.version", lambda: "another")
    assert run.stamp() != before


def test_a_single_value_is_drawn_as_a_dot(make_run: Make, client: TestClient) -> None:
    """A line needs two."""
    folder = make_run("one", iterations=1, cpu_seconds={"rollout": 1.0})
    modes = {
        (title, one["name"]): one["mode"]
        for title, figure in charts(client.get("/overview/one").text).items()
        for one in figure["traces"]
        if one.get("showlegend", True)
    }
    assert set(modes.values()) == {"lines+markers"}, modes
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(2)) + "\n")
    assert trace(client.get("/overview/one").text, "Diversity", "diversity")["mode"] == "lines"


def test_a_reward_of_evaluations_alone_is_told(make_run: Make, client: TestClient) -> None:
    folder = make_run("one", rewards={"ocr": {"mean": 0.5, "std": 0.3, "min": 0.0, "max": 1.0}})
    about = dict(re.findall(r"<h3>(.*?)</h3><p class=\"about\">(.*?)</p>", client.get("/overview/one").text))
    assert about["ocr"].endswith("It is trained on, with weight 1.")
    assert about["ocr_exact"] == "Of held-out prompts: mean. It is scored in evaluations alone."
    (folder / "metrics.jsonl").unlink()
    about = dict(re.findall(r"<h3>(.*?)</h3><p class=\"about\">(.*?)</p>", client.get("/overview/one").text))
    assert about["ocr_exact"].endswith("It is only watched.")


def test_a_small_gain_is_not_rounded_away(make_run: Make, client: TestClient) -> None:
    folder = make_run("one")
    lines = [{"iteration": number, "ocr": value, "ocr_exact": 0.5} for number, value in ((0, 2e-4), (3, 5e-4))]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    rows = re.findall(r"<tr><td>(ocr.*?)</td>.*?<td class=\"n\">([^<]*)</td></tr>", client.get("/overview/one").text)
    assert rows == [("ocr", "+0.0003"), ("ocr_exact", "+0.000")]


def test_compared_evaluations_were_made_alike(make_run: Make, client: TestClient) -> None:
    """Others would be joined by a line, and the same iteration stand there twice."""
    folder = make_run("one")
    make_run("two")
    ways = [(0, 0.9, "a"), (2, 0.95, "a"), (2, 0.25, "b"), (3, 0.5, "b")]
    lines = [{"iteration": number, "ocr": value, "made_with": {"ocr": way}} for number, value, way in ways]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    curve = trace(client.get("/compare?run=one&run=two").text, "ocr, held-out prompts", "one")
    assert (curve["x"], curve["y"]) == ([2, 3], [0.25, 0.5])


@pytest.mark.parametrize("damage", [{"fell_from": None}, {"to": "x"}, {"pace": []}, {"best": None}])
def test_a_damaged_fall_leaves_the_rest_to_see(make_run: Make, client: TestClient, damage: dict[str, Any]) -> None:
    folder = make_run("one")
    fall = {"iteration": 2, "time": "now", "fell_from": 0.5, "to": 0.25, "best": 1, "pace": 0.5}
    (folder / "changes.jsonl").write_text(json.dumps(fall) + "\n")
    assert "held-out reward fell from 0.500 to 0.250: weights of iteration 1 again" in client.get("/recipe/one").text
    (folder / "changes.jsonl").write_text(json.dumps(fall | damage) + "\n")
    for section in ("overview", "recipe"):
        assert "held-out reward fell from" in client.get(f"/{section}/one").text


def test_a_first_evaluation_is_shown_once(pictured: Path, client: TestClient) -> None:
    """There is no other yet, and no slider."""
    lines = (pictured / "evaluations.jsonl").read_text().splitlines()
    (pictured / "evaluations.jsonl").write_text(lines[0] + "\n")
    page = client.get("/pictures/one").text
    assert page.count("<figure") == page.count("<img") == 2
    assert "slider" not in page
    assert "→" not in page


def test_an_export_says_why_a_run_failed(pictured: Path, tmp_path: Path) -> None:
    state = {"name": "one", "state": "failed", "since": 2000.0, "iterations": 9, "error": "no <room>"}
    (pictured / "state.json").write_text(json.dumps(state))
    (run,) = Runs(pictured).all()
    page = export.page(run)
    assert '<p class="error">no &lt;room&gt;</p>' in page
    assert "failed since" in page
