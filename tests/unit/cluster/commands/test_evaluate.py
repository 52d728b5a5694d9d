"""Evaluations on demand: of checkpoints, with other settings, of two policies against each other."""

import json
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from branchgrpo.cluster.commands import evaluate as evaluating
from branchgrpo.cluster.commands.evaluate import Subject, evaluate_command, find_subjects, opponent, wins
from branchgrpo.cluster.run.checkpoints import written
from branchgrpo.cluster.run.evaluation import Evaluation, evaluation_tasks, made_with
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.pictures import labelled_grid
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.rollout_workers.policies.base import trainable
from branchgrpo.rollout_workers.policies.load import load_policy
from PIL import Image
from rich.console import Console
from support import Settings

SHADE = {"shade": {"function": "support:shade"}}


@pytest.fixture
def run(run_settings: Settings) -> RunFolder:
    """A run with two checkpoints: the policy as it was, and one with all weights halved."""
    settings = run_settings({"rewards": SHADE})
    weights = {name: value.detach().clone() for name, value in trainable(load_policy(settings.policy).network).items()}
    with RunFolder.create(settings) as folder:
        folder.append("metrics", {"iteration": 1})
        for iteration, factor in ((1, 1.0), (2, 0.5)):
            with written(folder.checkpoint(iteration)) as temporary:
                kept = {name: factor * value for name, value in weights.items()}
                safetensors.torch.save_file(kept, temporary / "weights.safetensors")
    return folder


def scores(folder: Path) -> list[float]:
    return [json.loads(line)["shade"] for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_checkpoints_are_evaluated_together_with_other_settings(run: RunFolder, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    console = Console(record=True, width=120)
    overrides = ["evaluation.prompts=2", "evaluation.samples=2", "evaluation.seed=5", "evaluation.steps=3"]
    evaluate_command(run.path, overrides, None, False, None, tmp_path / "all", console)
    told = console.export_text()
    assert "iteration 1:" in told
    assert str(run.checkpoint(2) / "weights.safetensors") in told
    one, two = (scores(tmp_path / "all" / f"iteration-{number}") for number in (1, 2))
    assert len(one) == len(two) == 4
    assert one != two
    assert all(f"{np.mean(values):.4f}" in told for values in (one, two))
    # The first is the policy as it was: a recipe's own evaluation gives the same.
    evaluate_command(run.path / "recipe.yaml", overrides, ["newest"], False, None, tmp_path / "alone", console)
    assert scores(tmp_path / "alone") == one
    assert Image.open(tmp_path / "alone" / "grid.png").height > 2 * 16
    torch.set_num_threads(threads)


def test_two_policies_are_compared_picture_by_picture(run: RunFolder, tmp_path: Path) -> None:
    console = Console(record=True, width=120)
    recipe = run.path / "recipe.yaml"
    evaluate_command(run.path, ["evaluation.samples=2"], ["newest"], False, recipe, tmp_path / "out", console)
    one, two = (scores(tmp_path / "out" / name) for name in ("run,-iteration-2", "run,-untrained"))
    better = sum(a > b for a, b in zip(one, two, strict=True))
    assert f"{better / len(one):.1%}" in console.export_text()
    lines = [json.loads(line) for line in (tmp_path / "out" / "wins.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert sum(line["shade"]["run, iteration 2"] for line in lines) == better
    assert all(sum(line["shade"].values()) == 2 for line in lines)
    assert (tmp_path / "out" / "side_by_side.png").is_file()


def test_names_with_brackets_are_shown_whole(run: RunFolder, tmp_path: Path) -> None:
    folder = run.path.rename(run.path.with_name("lr[high]"))
    console = Console(record=True, width=200)
    short = ["evaluation.prompts=1", "evaluation.steps=1"]
    evaluate_command(folder, short, ["newest"], False, folder, tmp_path / "out[wide]", console)
    told = console.export_text()
    assert f"lr[high], iteration 2: {folder}/checkpoints" in told
    assert told.count("lr[high], iteration 2") == 6, "two lines, two rows, two columns"
    assert f"pictures and scores: {tmp_path}/out[wide]" in told


def test_wins_count_pictures_by_prompt_and_those_alike() -> None:
    media = np.zeros((4, 8, 8, 3), np.uint8)
    prompts = ["a", "a", "a", "b"]
    first = Evaluation(prompts, Media(media), {"r": np.array([1.0, 2.0, 3.0, 0.0])})
    second = Evaluation(prompts, Media(media), {"r": np.array([0.0, 2.0, 4.0, 1.0])})
    assert wins(first, second, "r") == {"a": (1, 1, 1), "b": (0, 0, 1)}


def test_an_opponent_is_evaluated_as_the_first_is(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({"evaluation.seed": 9, "schedule.steps": 7})
    other = run_settings({"name": "other", "schedule.steps": 4, "policy.height": 32, "evaluation.seed": 1})
    settings, other = (
        own.model_copy(update={"policy": own.policy.model_copy(update={"seconds": seconds})})
        for own, seconds in ((settings, 2.0), (other, 5.0))
    )
    with RunFolder.create(other) as folder:
        folder.append("metrics", {"iteration": 1})
        same = opponent(folder.path / "recipe.yaml", settings)
    (task,), (own,) = (evaluation_tasks(given, ["1", "2"], version=0) for given in (same.settings, settings))
    assert (task.seed, task.schedule) == (own.seed, own.schedule)
    assert same.settings.policy.height == settings.policy.height
    assert same.settings.policy.seconds == settings.policy.seconds
    assert same.label == "other, untrained"


@pytest.mark.parametrize(
    ("changes", "threads"),
    [
        ({"execution": "in_process"}, (None, None)),
        ({"execution": "in_process", "threads": 3}, (3, 3)),
        (
            {"execution": "ray", "pools": {"rollout_workers": {"threads": 2}, "rewards": {"ocr": {"threads": 4}}}},
            (2, 3),  # of which there are only three cores
        ),
        ({"execution": "ray", "placement": "colocated", "pools": {"learner": {"cpus": 0.5}}}, (1, 1)),
    ],
)
def test_threads_are_those_of_the_run(
    changes: dict[str, object],
    threads: tuple[int | None, int | None],
    run_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda: 3)
    assert evaluating._threads(run_settings(changes)) == threads


def test_a_checkpoint_that_is_named_twice_is_one_policy(run: RunFolder) -> None:
    named = [run.done, "newest", run.done]
    assert [one.label for one in find_subjects(run.path, run.settings, named, False)] == [f"iteration {run.done}"]


def test_a_recipe_has_no_checkpoints(run_settings: Settings, tmp_path: Path) -> None:
    for which, ema in ((None, False), (["best"], False), ([3], False), (["newest"], True)):
        with pytest.raises(InputError, match="is a recipe, which has no checkpoints"):
            find_subjects(tmp_path / "recipe.yaml", run_settings(), which, ema)
    assert find_subjects(tmp_path / "recipe.yaml", run_settings(), ["newest"], False) == [
        Subject("untrained", run_settings(), None)
    ]


def test_labels_stand_below_their_pictures(tmp_path: Path) -> None:
    media = [Media(np.full((1, 16, 24, 3), shade, np.uint8)) for shade in (50, 100, 150)]
    labelled_grid(tmp_path / "grid.png", media, ["a", "b", "a prompt that is much too long for its picture"], columns=2)
    sheet = np.asarray(Image.open(tmp_path / "grid.png"))
    factor = 6  # to 144, at least 128
    assert sheet[10, [10, 24 * factor + 14]].tolist() == [[50] * 3, [100] * 3]
    below = sheet[16 * factor : 16 * factor + 15, : 24 * factor]
    assert (below < 128).any()
    assert (below > 200).any()


def test_evaluations_have_a_guidance_of_their_own(run_settings: Settings) -> None:
    prompts = ["1", "2"]
    own, policys = run_settings({"evaluation.guidance_scale": 2.0}), run_settings({"policy.guidance_scale": 2.0})
    assert {task.guidance_scale for task in evaluation_tasks(own, prompts, version=0)} == {2.0}
    assert {task.guidance_scale for task in evaluation_tasks(policys, prompts, version=0)} == {None}
    assert made_with(own, prompts) == made_with(policys, prompts)


def test_an_opponent_keeps_its_guidance_unless_told_otherwise(run_settings: Settings) -> None:
    settings = run_settings({"evaluation.guidance_scale": 2.0})
    other = run_settings({"name": "other", "evaluation.guidance_scale": 7.0})
    with RunFolder.create(other) as folder:
        recipe = folder.path / "recipe.yaml"
        assert opponent(recipe, settings).settings.evaluation.guidance_scale == 7.0
        given = ["evaluation.guidance_scale=3", "rewards={}"]
        assert opponent(recipe, settings, given).settings.evaluation.guidance_scale == 3.0


def test_an_opponent_that_can_t_be_used_is_told_before_sampling(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(*_: object) -> None:
        raise AssertionError("nothing is to be sampled")

    monkeypatch.setattr(evaluating, "RolloutWorker", sample)
    recipe = tmp_path / "other.yaml"
    recipe.write_text(f"base: {run.path / 'recipe.yaml'}\npolicy.pretrained: {tmp_path / 'gone'}\n")
    with pytest.raises(InputError, match=r"policy\.pretrained is '.*gone'"):
        evaluate_command(run.path, [], ["newest"], False, recipe, None, Console(quiet=True))
