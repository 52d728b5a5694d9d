"""Reports on made-up run folders: figures known by hand, what is missing, the same files each time."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from branchgrpo.cluster.study.file import Study
from branchgrpo.cluster.study.report import write_report
from branchgrpo.cluster.study.tables import tuning
from branchgrpo.cluster.study.trials import trials, tuning_trials
from PIL import Image

FLAT = {"schedule": {"method": "dance_grpo", "steps": 16, "group": 16}, "advantage.normaliser": "group"}
Load = Callable[..., Study]
MadeUp = Callable[..., None]


def records(study: Study, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((study.folder / "report" / f"{name}.csv").open()))


def written(study: Study) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((study.folder / "report").iterdir())}


@pytest.fixture
def whole(study_in: Load, made_up: MadeUp, timed: MadeUp) -> Study:
    """Two runs of each variant, all finished; `flat` reaches 0.5 after 2 and 4 iterations, `tree` after 3."""
    study = study_in()
    timed(study, flat=2.0, tree=0.5)
    rewards = [[0, 0.2, 0.6, 0.4, 0.8], [0, 0.1, 0.2, 0.3, 0.6], [0, 0.2, 0.4, 0.6, 0.8], [0, 0.2, 0.3, 0.6, 0.8]]
    for trial, values in zip(trials(study), rewards, strict=True):
        made_up(trial, values)
    return study


def test_efforts_to_a_target(whole: Study) -> None:
    report = write_report(whole)
    text = report.path.read_text()
    found = {(line["variant"], line["axis"]): line for line in records(whole, "target_0.5")}
    values = {key: float(line["value"]) for key, line in found.items()}
    assert [values["flat", axis] for axis in ("iterations", "forward_passes", "rows", "seconds")] == [3, 300, 270, 6]
    assert [values["tree", axis] for axis in ("iterations", "forward_passes", "rows", "seconds")] == [3, 120, 150, 1.5]
    assert float(found["tree", "seconds"]["ratio_value"]) == 4
    assert "2 of 2" in text
    assert "Missing" not in text
    assert report.broken == []


def test_rewards_at_equal_effort(whole: Study) -> None:
    write_report(whole)
    by_iteration = {(r["variant"], float(r["effort"])): r for r in records(whole, "reward_by_iterations")}
    assert float(by_iteration["flat", 2]["value"]) == pytest.approx(0.4)
    by_passes = {(r["variant"], float(r["effort"])): r for r in records(whole, "reward_by_forward_passes")}
    assert float(by_passes["tree", 160]["value"]) == pytest.approx(0.8), "all that every variant has spent"
    assert float(by_passes["flat", 160]["value"]) == pytest.approx((0.44 + 0.16) / 2), "linear between evaluations"


def test_costs_and_diversity(whole: Study) -> None:
    text = write_report(whole).path.read_text()
    flat, tree = records(whole, "costs")
    assert (flat["forward_passes"], flat["rows"], flat["seconds"]) == ("100.0", "90.0", "2.0")
    assert (tree["rollout"], tree["learning"]) == ("0.375", "0.125")
    assert "| `tree` | 40 | 50 | 0.5 (0.5 to 0.5) | 0.375 | 0.125 | 4 |" in text
    assert float(records(whole, "diversity")[0]["leaves_last_value"]) == 0.125


def test_the_same_runs_give_the_same_files(whole: Study) -> None:
    write_report(whole)
    first = written(whole)
    write_report(whole)
    assert written(whole) == first
    page = first["report.html"].decode()
    assert page.count("data:image/png;base64,") == 4
    assert 'src="reward' not in page
    for name in ("iterations", "forward_passes", "rows", "seconds"):
        Image.open(whole.folder / "report" / f"reward_by_{name}.png").verify()


def test_what_is_missing_is_named(study_in: Load, made_up: MadeUp) -> None:
    study = study_in(targets=[0.5, 0.95])
    one, two, three, _ = trials(study)
    made_up(one, [0, 0.2, 0.6], "failed", "the gradient isn't finite\nat all")
    made_up(two, [0, 0.2, 0.3, 0.4, 0.4])
    made_up(three, [0, 0.9, 0.9, 0.9, 0.9])
    (three.folder.path / "metrics.jsonl").write_text("{half a li")
    report = write_report(study)
    text = report.path.read_text()
    assert "- `flat-seed0` is broken, failed after iteration 2: the gradient isn't finite\n" in text
    assert "- `tree-seed0` is broken, unreadable: InputError: " in text
    assert "- `tree-seed1` is not started" in text
    assert "- seconds per iteration aren't measured yet" in text
    assert "| `flat` | 1 of 2 | – | > 300 | > 3 |" in text, "the run in vain counts with all its iterations"
    assert "| `flat` | 0 of 2 | – | > 300 | > 3 | 1 |" in text
    assert [path.name for path in report.broken] == ["flat-seed0", "tree-seed0"]


def test_no_text_of_a_run_or_study_is_html(study_in: Load, made_up: MadeUp) -> None:
    study = replace(study_in(), name="tall <b> & wide")
    made_up(next(iter(trials(study))), [0, 0.2], "failed", "no tag <script>alert(1)</script> & <img src=x>")
    write_report(study)
    page = (study.folder / "report" / "report.html").read_text()
    assert "<title>tall &lt;b&gt; &amp; wide</title>" in page
    assert "<h1>Study: tall &lt;b&gt; &amp; wide</h1>" in page
    assert "no tag &lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;img src=x&gt;" in page
    assert "<script" not in page


def test_a_report_of_nothing(study_in: Load) -> None:
    study = study_in()
    assert "- `flat-seed0` is not started" in write_report(study).path.read_text()
    assert list(Path(study.folder / "report").glob("*.png")) == []


def test_a_tuned_value_that_failed_is_no_broken_run(study_in: Load, made_up: MadeUp) -> None:
    variants = {"flat": FLAT, "tree": {"tune": {"learner.optimizer.learning_rate": [1e-4, 1.0]}}}
    study = study_in(variants=variants, tuning={"prompts": "validation.txt"})
    good, bad = (runs[0] for _, runs in tuning_trials(study, "tree"))
    made_up(bad, [0, 0.1], "failed", "the gradient isn't finite")
    report = write_report(study)
    assert report.broken == [bad.folder.path]
    assert "- `tree` isn't tuned yet" in report.path.read_text()
    made_up(good, [0, 0.5, 0.5, 0.5, 0.5])
    report = write_report(study)
    assert report.broken == []
    text = report.path.read_text()
    assert "| `tree` | `learner.optimizer.learning_rate=0.0001` | 0.500 | chosen (an end of its list) |" in text
    assert "| `tree` | `learner.optimizer.learning_rate=1.0` | failed |  |" in text


@pytest.mark.parametrize(
    ("tuned", "marked"),
    [
        ({"learner.clip_range": [0.01], "learner.optimizer.learning_rate": [1e-4, 2e-4]}, True),
        ({"advantage.noise_weight": [False, True]}, False),
    ],
    ids=["beside a single value", "yes or no"],
)
def test_only_what_may_go_on_has_an_end(
    study_in: Load, made_up: MadeUp, tuned: dict[str, list[object]], marked: bool
) -> None:
    study = study_in(variants={"flat": {}, "tree": {"tune": tuned}}, tuning={"prompts": "validation.txt"})
    for score, (_, runs) in enumerate(tuning_trials(study, "tree")):
        made_up(runs[0], [0, score, score, score, score])
    (chosen,) = [row[-1] for row in tuning(study).rows if row[-1]]
    assert chosen == "chosen" + " (an end of its list)" * marked
