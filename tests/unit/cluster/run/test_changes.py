"""Runs that go on with other settings, or go back."""

import errno
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from branchgrpo.cluster.run import line_files, pictures
from branchgrpo.cluster.run.changes import find_changes
from branchgrpo.cluster.run.checkpoints import written
from branchgrpo.cluster.run.evaluation import MADE_WITH
from branchgrpo.cluster.run.folder import RunFolder, load_settings
from branchgrpo.proto import atomic_files, recipe
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.settings import RunSettings
from support import RECIPES, ROOT, Settings

LORA = {"rank": 4, "alpha": 8}


def nobody(path: Path, why: str) -> None:
    raise AssertionError(f"{path} is damaged: {why}")


def made(settings: RunSettings, iterations: int) -> RunFolder:
    """A run with checkpoints, lines and pictures, without the work."""
    with RunFolder.create(settings) as run:
        run.append("evaluations", {"iteration": 0, "ocr": 0.0})
        for iteration in range(1, iterations + 1):
            run.append("metrics", {"iteration": iteration})
            run.append("evaluations", {"iteration": iteration, "ocr": 0.1 * iteration})
            with written(run.checkpoint(iteration)) as temporary:
                (temporary / "weights.safetensors").write_bytes(b"w%d" % iteration)
            for name in ("evaluations", "samples"):
                (run.path / name).mkdir(exist_ok=True)
                (run.path / name / f"iteration-{iteration:06d}.png").touch()
    return run


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({}, {"learner.optimizer.learning_rate": 5e-4}),
        ({}, {"learner.clip_range": 0.5}),
        ({}, {"learner.kl_weight": 0.1}),
        ({}, {"learner.ema_decay": 0.9}),
        ({"learner.zero_stage": 1}, {"learner.zero_stage": 2}),
        ({}, {"learner.gradient_checkpointing": True, "learner.rows_per_micro_batch": 3}),
        ({}, {"rollout.max_batch_rows": 8, "rollout.latents_precision": "bfloat16"}),
        ({}, {"rewards": {"ocr": {"weight": 0.5, "url": "http://elsewhere:8000", "timeout_seconds": 9}}}),
        ({}, {"schedule.eta": 0.3, "schedule.splits": {0: 2, 1: 2}, "schedule.sibling_spread": 1.0}),
        ({}, {"policy.height": 32, "policy.guidance_scale": 2.0}),
        ({}, {"advantage.clip": 2.0, "prompts.per_iteration": 8, "seed": 3}),
        ({}, {"evaluation.every": 2, "evaluation.samples": 2, "logging.trace": False, "checkpoint.keep": 5}),
        ({"learner.lora": LORA}, {"learner.lora": LORA, "learner.clip_range": 0.5}),
    ],
)
def test_what_does_not_contradict_a_checkpoint_may_change(
    before: dict[str, Any], now: dict[str, Any], run_settings: Settings
) -> None:
    changes = find_changes(run_settings(before), run_settings(now))
    assert changes
    assert find_changes(run_settings(now), run_settings(now)) == []
    named = {change.setting for change in changes}
    for setting in now.keys() - before.keys():
        assert any(f"{name}.".startswith(f"{setting}.") for name in named), setting


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (
            {"learner.zero_stage": 1},
            {"learner.zero_stage": 1, "policy.precision": "bfloat16"},
            "policy.precision: float32 -> bfloat16 can't",
        ),
        ({}, {"learner.zero_stage": 1}, "learner.zero_stage: 0 -> 1 can't be changed when a run continues"),
        (
            {"learner.zero_stage": 1},
            {"learner.zero_stage": 3},
            "optimizer states are laid out differently at these stages",
        ),
        ({}, {"learner.lora": LORA}, "learner.lora: null -> .* holds the weights of these adapters and no others"),
        ({"learner.lora": LORA}, {}, "learner.lora: .* -> null"),
        ({"learner.lora": LORA}, {"learner.lora": {**LORA, "rank": 8}}, "learner.lora.rank: 4 -> 8"),
        ({"learner.lora": LORA}, {"learner.lora": {**LORA, "alpha": 9}}, "learner.lora.alpha: 8.0 -> 9.0"),
        ({"learner.lora": LORA}, {"learner.lora": {**LORA, "target_modules": ["to_q"]}}, "learner.lora.target_modules"),
    ],
)
def test_what_contradicts_a_checkpoint_is_refused(
    before: dict[str, Any], now: dict[str, Any], message: str, run_settings: Settings
) -> None:
    with pytest.raises(InputError, match=message):
        find_changes(run_settings(before), run_settings(now))


def test_prompts_trained_on_are_not_held_out_later(run_settings: Settings) -> None:
    drawn = {"prompts.held_out": None, "prompts.held_out_count": 4, "evaluation.prompts": None}
    before = run_settings(drawn)
    assert find_changes(before, run_settings({**drawn, "prompts.held_out_count": 3}))  # of these, four
    for changed in ({"prompts.held_out_count": 5}, {"seed": 1}):
        with pytest.raises(InputError, match="would hold out . prompts that the run has trained on"):
            find_changes(before, run_settings({**drawn, **changed}))


def test_a_policy_may_move_and_may_not_be_another(run_settings: Settings, tmp_path: Path, tiny_pipeline: Path) -> None:
    made(run_settings(), 1)
    moved = Path(shutil.copytree(tiny_pipeline, tmp_path / "moved"))
    settings = run_settings({"policy.pretrained": str(moved)})
    with RunFolder.resume(settings) as run:
        assert [change.setting for change in run.changes] == ["policy.pretrained"]
    weights = moved / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000:] = bytes(1000)
    weights.write_bytes(content)
    with pytest.raises(InputError, match="holds other weights than the run began with"), RunFolder.resume(settings):
        pass


def test_changes_are_kept_with_their_first_iteration(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({"iterations": 9})
    run = made(settings, 2)
    run.append("metrics", {"iteration": 3})  # without a checkpoint: it is done again
    with RunFolder.resume(settings) as run:
        assert run.changes == []
        assert run.go_on(nobody) == 2
    assert not (run.path / "changes.jsonl").exists()
    assert not (run.path / "set-aside").exists()
    run.append("metrics", {"iteration": 3})

    other = tmp_path / "other.txt"
    other.write_text("777\n888\n")
    changed = run_settings({"iterations": 9, "learner.clip_range": 0.5, "prompts.train": str(other)})
    with RunFolder.resume(changed) as run:
        assert run.settings.learner.clip_range == 0.01  # until processes are set up
        assert run.go_on(nobody) == 2
    assert run.settings.learner.clip_range == 0.5
    lines = run.lines("changes")
    assert {line["setting"]: (line["iteration"], line["before"], line["now"]) for line in lines} == {
        "learner.clip_range": (3, 0.01, 0.5),
        "prompts.train": (3, "14 prompts (ac5afd30)", "2 prompts (8d0edeb6)"),
    }
    assert run.settings.prompts.train.read_text() == "777\n888\n"
    assert len((run.path / "prompts" / "train-until-000002.txt").read_text().splitlines()) == 14
    aside = run.path / "set-aside" / "after-000002" / "metrics.jsonl"
    assert [json.loads(line) for line in aside.read_text().splitlines()] == [{"iteration": 3}]  # it will differ now


@pytest.mark.parametrize("file", ["changes.jsonl", "prompts/train.jsonl", "recipe.yaml"])
def test_a_continuation_is_cut_off_and_tried_again(
    file: str, run_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a full disk, after which the same driver tries again, or for good: then another one resumes the run."""
    settings = run_settings({"iterations": 9})
    made(settings, 4)
    (tmp_path / "other.jsonl").write_text('{"prompt": "777", "text": "7"}\n')
    changed = run_settings({"iterations": 9, "learner.clip_range": 0.5, "prompts.train": str(tmp_path / "other.jsonl")})

    def write(path: Path, text: str) -> None:
        if str(path).endswith(file):
            monkeypatch.undo()
            raise OSError(errno.ENOSPC, "no room")
        atomic_files.write_text(path, text)

    for module in (line_files, recipe):
        monkeypatch.setattr(module, "write_text", write)
    with RunFolder.resume(changed, 2) as run:
        with pytest.raises(OSError, match="no room"):
            run.go_on(nobody)
        assert RunFolder.open(run.path).settings.prompts.train.is_file(), "whoever resumes the run now finds them"
        assert run.go_on(nobody) == 2
    assert [path.name for path in sorted((run.path / "prompts").glob("train*"))] == [
        "train-until-000002.txt",
        "train.jsonl",
    ]
    told = [line.get("setting", line.get("went_back_from")) for line in run.lines("changes")]
    assert (told[0], sorted(told[1:])) == (4, ["learner.clip_range", "prompts.train"])


def test_a_run_goes_back_and_loses_nothing(run_settings: Settings) -> None:
    settings = run_settings({"iterations": 4})
    run = made(settings, 4)
    (run.path / "export").mkdir()
    (run.path / "summary.json").write_text("{}")
    before = sorted(path.relative_to(run.path) for path in run.path.rglob("*") if path.is_file())
    gone = pytest.raises(InputError, match=r"no checkpoint of iteration 7; there are 1, 2, 3, 4")
    with gone, RunFolder.resume(settings, 7):
        pass
    with RunFolder.resume(settings, 2) as run:
        assert run.checkpoints() == [1, 2, 3, 4]
        assert run.go_on(nobody) == 2
        assert run.go_on(nobody) == 2  # set up again
    assert run.checkpoints() == [1, 2]
    assert [line["iteration"] for line in run.lines("metrics")] == [1, 2]
    assert [line["iteration"] for line in run.lines("evaluations")] == [0, 1, 2]
    aside = run.path / "set-aside" / "after-000002"
    assert [json.loads(line)["iteration"] for line in (aside / "metrics.jsonl").read_text().splitlines()] == [3, 4]
    kept = {path.relative_to(aside) for path in aside.rglob("*") if path.is_file()}
    assert all((run.path / path).is_file() or path in kept for path in before)
    (line,) = run.lines("changes")
    assert (line["iteration"], line["went_back_from"], line["to"]) == (3, 4, 2)

    with RunFolder.resume(settings, 0) as run:
        assert run.go_on(nobody) == 0
    assert run.checkpoints() == []
    assert run.lines("evaluations") == []
    assert (run.path / "set-aside" / "after-000000" / "checkpoints" / "iteration-000002").is_dir()


def test_a_run_folder_stands_for_its_recipe(run_settings: Settings, tmp_path: Path, monkeypatch: Any) -> None:
    run = made(run_settings(), 1)
    moved = run.path.rename(tmp_path / "elsewhere")
    settings = load_settings(moved, ["iterations=7"])
    assert (settings.runs, settings.name, settings.iterations) == (tmp_path, "elsewhere", 7)
    monkeypatch.chdir(moved)
    assert load_settings(Path()).name == "elsewhere"
    with pytest.raises(InputError, match="'name=other' names another run than the one in"):
        load_settings(moved, ["name=other"])
    with pytest.raises(InputError, match="is no run folder"):
        load_settings(tmp_path)
    with RunFolder.resume(settings) as run:
        assert [change.setting for change in run.changes] == ["iterations"]


def overrides_in_docs() -> list[Sequence[str]]:
    """What every command in the docs gives a run that goes on."""
    found = []
    for file in (ROOT / "docs").glob("*.md"):
        for command in file.read_text().split("`"):
            words = shlex.split(command) if command.startswith("branchgrpo") else []
            if words[:1] == ["branchgrpo"] and "--resume" in words:
                found += [[word for word in words if "=" in word and not word.startswith("--")]]
    return found


def test_the_remedies_of_the_docs_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("harder.txt").write_text("777\n888\n")
    before = load_settings(RECIPES / "glyphs.yaml")
    remedies = [overrides for overrides in overrides_in_docs() if overrides]
    assert len(remedies) > 5
    for overrides in remedies:
        now = load_settings(RECIPES / "glyphs.yaml", overrides)
        assert find_changes(before, now), overrides


def test_the_best_by_each_way_of_evaluating_are_kept(run_settings: Settings) -> None:
    run = made(run_settings({"checkpoint.keep": 1, "checkpoint.keep_best": {}, "evaluation.every": 1}), 0)
    for iteration, score, way in ((1, 5.0, "a"), (2, 3.0, "a"), (2, 1.0, "b"), (3, 2.0, "b"), (4, 0.0, "b")):
        run.append("evaluations", {"iteration": iteration, "ocr": score, MADE_WITH: {"ocr": way}})
        run.checkpoint(iteration).mkdir(parents=True, exist_ok=True)
    assert run.best_checkpoints() == [3, 2, 4]
    run.drop_old_checkpoints(run.settings.checkpoint)
    assert run.checkpoints() == [1, 3, 4]


def test_a_curve_has_each_reward_where_it_was_given(tmp_path: Path) -> None:
    metrics = [
        {"iteration": 1, "rewards": {"a": {"mean": 0.1}}},
        {"iteration": 2, "rewards": {"a": {"mean": 0.2}, "b": {"mean": 9.0}}},
        {"iteration": 3, "rewards": {"b": {"mean": 8.0}}},
    ]
    evaluations = [
        {"iteration": 0, "a": 0.0, MADE_WITH: {"a": "1"}},
        {"iteration": 1, "a": 0.3, "b": 7.0, MADE_WITH: {"a": "2", "b": "2"}},
        {"iteration": 3, "b": 6.0, MADE_WITH: {"b": "2"}},
    ]
    pictures.reward_curve(tmp_path / "curve.png", metrics, evaluations)
    assert (tmp_path / "curve.png").is_file()


@pytest.mark.parametrize(
    ("given", "told"),
    [({}, (0.1, 0.5)), ({"learner.clip_range": 0.7}, (0.1, 0.7)), ({"learner.clip_range": 0.1}, None)],
    ids=["as it was last", "a third value", "the first value"],
)
def test_changes_after_the_place_that_a_run_goes_back_to_count_from_there(
    given: dict[str, float], told: tuple[float, float] | None, run_settings: Settings
) -> None:
    settings = run_settings({"iterations": 9, "learner.clip_range": 0.1})
    made(settings, 4)
    with RunFolder.resume(run_settings({"iterations": 9, "learner.clip_range": 0.3})) as run:
        run.go_on(nobody)
    with RunFolder.resume(run_settings({"iterations": 9, "learner.clip_range": 0.5})) as run:
        run.go_on(nobody)
    changed = run_settings({"iterations": 9, "learner.clip_range": 0.5, **given})
    with RunFolder.resume(changed, 2) as run:
        assert run.go_on(nobody) == 2
        assert run.went_back_from == 4
        assert [(change.before, change.now) for change in run.changes] == ([told] if told else [])
    back, *further = run.lines("changes")
    assert (back["iteration"], back["went_back_from"]) == (3, 4)
    assert [(line["iteration"], line["before"], line["now"]) for line in further] == ([(3, *told)] if told else [])
    aside = (run.path / "set-aside" / "after-000002" / "changes.jsonl").read_text()
    assert [json.loads(line)["now"] for line in aside.splitlines()] == [0.3, 0.5]


def test_a_change_at_the_place_that_a_run_goes_back_to_stays(run_settings: Settings) -> None:
    made(run_settings({"iterations": 9, "learner.clip_range": 0.1}), 2)
    changed = run_settings({"iterations": 9, "learner.clip_range": 0.3})
    for _ in range(2):
        with RunFolder.resume(changed, 2) as run:
            run.go_on(nobody)
    assert [line["now"] for line in run.lines("changes") if "setting" in line] == [0.3]
