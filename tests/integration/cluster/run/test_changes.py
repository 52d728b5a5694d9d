"""Evaluations before and after a change of settings."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.evaluation import comparable, made_with
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.status import status_of
from branchgrpo.cluster.train import train
from branchgrpo.proto.settings import RunSettings
from rich.console import Console
from support import Settings

SMALL = {
    "policy.pretrained": "glyphs",
    "policy.height": 32,
    "policy.width": 64,
    "prompts.per_iteration": 2,
    "schedule": {"steps": 3, "splits": {0: 2}},
    "evaluation": {"prompts": 2, "every": 1},
}
OCR = {"ocr": {"weight": 1.0}}
BOTH = {"ocr": {"weight": 1.0}, "jpeg_compressibility": {"weight": 0.0}}
SWAPPED = {"ocr": {"weight": 0.0}, "jpeg_compressibility": {"weight": 0.01}}


def trained(settings: RunSettings, resume: bool = False) -> tuple[RunFolder, str]:
    """The folder of a run after it has gone to its end, and what it told."""
    console = Console(record=True, width=120, file=io.StringIO())
    return RunFolder(train(settings, RunDisplay(console), resume=resume)), console.export_text()


@pytest.mark.parametrize(
    ("before", "now", "lines", "first"),
    [
        ({"rewards": OCR}, {"rewards": BOTH}, [0, 1, 1, 2], 1),  # of the added one there is no score before
        ({"rewards": BOTH}, {"rewards": OCR}, [0, 1, 2], 0),  # of what is left all scores compare
        ({"rewards": BOTH}, {"rewards": SWAPPED}, [0, 1, 2], 0),
        ({"rewards": OCR}, {"rewards": OCR, "evaluation": {"prompts": 3}}, [0, 1, 1, 2], 1),
        ({"rewards": OCR}, {"rewards": OCR, "policy.width": 48}, [0, 1, 1, 2], 1),
        (
            {"rewards": OCR, "checkpoint.keep_best": {}, "checkpoint.keep": 1},
            {"rewards": BOTH, "checkpoint.keep_best": {}, "checkpoint.keep": 1},
            [0, 1, 1, 2],
            1,
        ),
    ],
    ids=["added", "dropped", "swapped", "other prompts", "other size", "with the best kept"],
)
def test_only_what_compares_is_compared_after_a_change(
    before: dict[str, Any], now: dict[str, Any], lines: list[int], first: int, run_settings: Settings, tmp_path: Path
) -> None:
    trained(run_settings({**SMALL, **before, "evaluation": {"prompts": 2, "every": 1}, "iterations": 1}))
    changed = {**SMALL, **now, "iterations": 2}
    changed["evaluation"] = {"prompts": 2, "every": 1, **now.get("evaluation", {})}
    settings = run_settings(changed)
    folder, told = trained(settings, resume=True)
    evaluations = folder.lines("evaluations")
    assert [line["iteration"] for line in evaluations] == lines
    assert all(folder.evaluation(line).means == {k: v for k, v in line.items() if k in BOTH} for line in evaluations)
    summary = json.loads((folder.path / "summary.json").read_text())
    assert (summary["before_iteration"], summary["after_iteration"]) == (first, 2)
    assert summary["before"].keys() == summary["after"].keys() == settings.rewards.keys()
    assert summary["before"] == {name: comparable(evaluations)[0][name] for name in settings.rewards}
    assert summary["evaluation_prompts"] == settings.evaluation.prompts
    assert ("after iteration 1 " in told.split("held-out reward")[1]) == (first == 1)
    assert all((folder.path / name).is_file() for name in ("before_after.png", "reward_curve.png"))
    assert status_of(folder.path).held_out.keys() == settings.rewards.keys()
    assert set(folder.best_checkpoints()) <= {1, 2}


def test_a_judge_is_known_by_what_it_is_asked_not_by_where_it_is(run_settings: Settings) -> None:
    def name(**changes: Any) -> str:
        judge = {"url": "http://one/v1", "model": "m", "questions": ["Is this {prompt}?"], **changes}
        return made_with(run_settings({"rewards": {"faithful": {"judge": judge}}}), ["a dog"])["faithful"]

    assert name(url="http://two/v1", concurrency=2, api_key_env="KEY", cached_answers=1) == name()
    assert len({name(), name(model="n"), name(questions=["Is it {prompt}?"]), name(combine="min")}) == 4


def test_what_evaluations_are_made_with(run_settings: Settings) -> None:
    """Names are equal exactly where scores compare."""
    prompts = ["a", "b"]
    before = run_settings({"rewards": BOTH})
    for alike in (
        {"rewards": SWAPPED},
        {"rewards": BOTH, "learner.clip_range": 0.5, "policy.device": "auto", "evaluation.every": 3},
        {"rewards": BOTH, "evaluation.steps": 5, "schedule.splits": {1: 2}},  # as many as the schedule has
    ):
        assert made_with(run_settings(alike), prompts) == made_with(before, prompts), alike
    for other in (
        {"policy.guidance_scale": 2.0},
        {"policy.shift": 2.0},
        {"policy.height": 32},
        {"evaluation.seed": 1},
        {"schedule.steps": 6},
        {"rollout.latents_precision": "bfloat16"},
    ):
        names = made_with(run_settings({"rewards": BOTH, **other}), prompts)
        assert not set(names.values()) & set(made_with(before, prompts).values()), other
    elsewhere = {"ocr": {"url": "http://a:1"}, "jpeg_compressibility": {"weight": 0.0}}
    names = made_with(run_settings({"rewards": elsewhere}), prompts)
    assert names["ocr"] != made_with(before, prompts)["ocr"]
    assert names["jpeg_compressibility"] == made_with(before, prompts)["jpeg_compressibility"]
    moved = {**elsewhere, "ocr": {"url": "http://b:2"}}
    assert made_with(run_settings({"rewards": moved}), prompts) == names
