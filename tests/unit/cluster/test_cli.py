"""The command line: help, mistakes, evaluate and export."""

import json
import socket
import sys
from pathlib import Path

import pytest
import typer
from branchgrpo.benchmarks.support.local_cluster import free_port
from branchgrpo.cluster import cli
from rich.text import Text
from support import RECIPES
from typer.testing import CliRunner

GLYPHS = str(RECIPES / "glyphs.yaml")


def call(*arguments: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit status and standard error of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["branchgrpo", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["learner.learnin_rate=1"],
            "unknown setting 'learner.learnin_rate'; did you mean 'learner.optimizer.learning_rate'?",
        ),
        (
            ["policy.pretrained=/nowhere/flux"],
            "policy.pretrained is '/nowhere/flux'; it must be a diffusers pipeline folder",
        ),
        (["rewards={beauty: {}}"], "unknown reward 'beauty' in rewards"),
        (["rewards={prompt: {function: 'm:f'}}"], "rewards: 'prompt' can't name a reward; a name has up to 64 letters"),
        (["rewards={my.reward: {function: 'm:f'}}"], "rewards: 'my.reward' can't name a reward"),
        (["prompts.train={empty}"], "which holds no prompt"),
        (["prompts.train=/nowhere.txt"], "prompts.train is '/nowhere.txt'; no such file"),
        (["schedule.splits={15: 2}"], "splits names step 15"),
        (["schedule.splits={3: 1}"], "a split has at least 2"),
        (["rollout.max_batch_rows=0"], "rollout.max_batch_rows is 0"),
        (["execution=in_process", "policy.height=20"], "policy.height is 20; this model draws multiples of 8"),
        (["pools.rewards={aesthetics: {}}"], "pools.rewards names 'aesthetics'; the reward models of this run are ocr"),
        (["pools.rewards.ocr.gpus=3"], "pools.rewards.ocr needs 1 x 0.5 CPU, 3 GPU"),
        (["staleness=1"], "staleness is 1 with execution 'ray' and placement 'colocated'"),
        (["policy.device=abacus"], "policy.device is 'abacus'"),
        (
            ["execution=in_process", "learner.lora={target_modules: [nothing]}"],
            "learner.lora.target_modules is ['nothing']",
        ),
        (["runs={empty}"], "can't be made: Not a directory"),
        (["name=taken"], "give --resume to continue it"),
        (["--resume", "name=other"], "there is nothing to resume"),
        (["logging.wandb_project=x"], "pip install wandb"),
    ],
)
def test_each_mistake_is_one_clear_line_and_leaves_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it weren't installed
    if "name=taken" in arguments:
        (tmp_path / "runs" / "taken").mkdir(parents=True)
        (tmp_path / "runs" / "taken" / "recipe.yaml").touch()
    given = [argument.replace("{empty}", str(empty)) for argument in arguments]
    runs = [] if any(argument.startswith("runs=") for argument in given) else [f"runs={tmp_path / 'runs'}"]
    before = sorted(tmp_path.rglob("*"))
    status, error = call("train", GLYPHS, *runs, *given, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2
    assert len(error.strip().splitlines()) == 1
    assert message in error
    assert sorted(tmp_path.rglob("*")) == before


COMMANDS = typer.main.get_command(cli.app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    text = CliRunner().invoke(cli.app, [name, "--help"]).output
    assert "Example: branchgrpo" in text
    assert "[[" not in text  # Typer puts the brackets of what may be left out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_breaks_no_sentence_at_100_columns(name: str) -> None:
    _, *below = COMMANDS[name].help.split("\n\n")  # where lines are shown as they are written
    assert [line for line in "\n".join(below).split("\n") if len(Text.from_markup(line)) > 98] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["view", "--iteration", "5"], "--iteration is of --export"),
        (["view", "--export", "x.html", "--port", "9"], "--export writes a file and serves no pages; omit --host"),
        (["plan", "glyphs", "--layout", "3"], "--layout says what --write writes; give both, or neither"),
        (["draw-dashboards", "run", "--minutes", "0"], "--minutes is 0; it must be more"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, error = call(*arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert (status, message in error) == (2, True), error


def test_evaluate_writes_pictures_and_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {GLYPHS}\nevaluation: {{prompts: 10}}\n")
    status, _ = call("evaluate", str(recipe), "--out", str(tmp_path / "out"), capsys=capsys, monkeypatch=monkeypatch)
    assert status == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    assert {"prompt", "picture", "ocr", "ocr_exact"} == lines[0].keys()
    assert all((tmp_path / "out" / line["picture"]).is_file() for line in lines)
    assert (tmp_path / "out" / "grid.png").is_file()
    status, error = call(
        "evaluate", str(recipe), "--out", str(tmp_path / "out"), capsys=capsys, monkeypatch=monkeypatch
    )
    assert status == 2
    assert "exists, and isn't overwritten" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", GLYPHS, "--out"],
        ["export", "run"],
        ["trace", "run", "--out"],
        ["draw-dashboards", "run", "--out"],
        ["pretrain", "glyphs"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_no_command_replaces_what_it_has_not_written(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "mine").write_text("mine")
    for there in (results, results / "mine"):
        status, error = call(*arguments, str(there), capsys=capsys, monkeypatch=monkeypatch)
        assert status == 2
        assert "exists, and isn't overwritten" in error
    assert (results / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", GLYPHS, "--ema"], "is a recipe, which has no checkpoints"),
        (["evaluate", "{folder}"], "is no run folder"),
        (["check", "{folder}/x"], "x doesn't exist; name a recipe or the folder of a run"),
        (["evaluate", GLYPHS, "--out", "/proc/nowhere/x"], "can't be made"),
        (["export", "{folder}", "{folder}/out"], "is no run folder"),
        (["scale", "{folder}/x", "--rollout-workers", "2"], "x is no run folder"),
        (["profile", "{folder}/x"], "x is no run folder"),
        (["draw-dashboards", "x", "--prometheus", "http://127.0.0.1:1"], "where nothing answers; `branchgrpo monitor"),
    ],
)
def test_wrong_targets_are_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [argument.replace("{folder}", str(tmp_path)) for argument in arguments]
    status, error = call(*given, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2
    assert message in error.replace("\n", "")


def test_rewards_are_not_served_to_others_without_a_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BRANCHGRPO_TOKEN", raising=False)
    serve = ("serve-rewards", GLYPHS, "--host", "0.0.0.0")
    status, error = call(*serve, capsys=capsys, monkeypatch=monkeypatch)
    assert (status, "--host is '0.0.0.0'" in error) == (2, True)
    for content, problem in {
        b"\n": "must hold the token alone",
        b"two\nlines": "must hold the token alone",
        b"two words": "must hold the token alone",
        "schlüssel".encode(): "can't be read: 'ascii' codec",
        bytes(range(256)): "can't be read: 'ascii' codec",
    }.items():
        (tmp_path / "token").write_bytes(content)
        status, error = call(*serve, "--token-file", str(tmp_path / "token"), capsys=capsys, monkeypatch=monkeypatch)
        assert (status, len(error.strip().splitlines())) == (2, 1)
        assert f"--token-file '{tmp_path / 'token'}' {problem}" in error
    status, error = call(*serve, "--token-file", str(tmp_path), capsys=capsys, monkeypatch=monkeypatch)
    assert (status, "can't be read: [Errno 21] Is a directory" in error) == (2, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ("--port", "99999"),
            "--port is 99999, which can't be used on --host '127.0.0.1': bind(): port must be 0-65535",
        ),
        (("--port", "{taken}"), "--port is {taken}, which can't be used on --host '127.0.0.1': Address already in use"),
        (("--port", "0", "--host", "no.such.host"), "--port is 0, which can't be used on --host 'no.such.host': "),
        (("--port", "0", "--host", "a" * 70 + ".b"), "which can't be used on --host 'aaaa"),
    ],
)
def test_an_address_that_cannot_be_had_is_named(
    given: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BRANCHGRPO_TOKEN", "secret")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = [part.replace("{taken}", port) for part in given]
        status, error = call("serve-rewards", GLYPHS, *arguments, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2
    assert message.replace("{taken}", port) in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("return media.mean(axis=(1, 2, 3)) / 255", 0, ""),
        ("return media[:1].mean(axis=(1, 2, 3))", 1, "error: reward 'brightness' gave (1,) scores for 8 pictures"),
    ],
)
def test_a_function_in_the_present_folder_is_a_reward(
    body: str,
    status: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the installed command has it, whose own path doesn't begin with that folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    (tmp_path / "my_rewards.py").write_text(f"def brightness(media, prompts):\n    {body}\n")
    (tmp_path / "recipe.yaml").write_text(
        f"base: {GLYPHS}\nname: own\niterations: 1\nexecution: in_process\npools: {{}}\n"
        "rewards: {brightness: {function: 'my_rewards:brightness'}}\nevaluation: {prompts: 8}\n"
        "prompts: {per_iteration: 2}\nschedule: {steps: 5, splits: {0: 2}}\n"
    )
    ended, error = call("train", "recipe.yaml", "pools.rewards={}", capsys=capsys, monkeypatch=monkeypatch)
    assert ended == status, error
    assert message in " ".join(error.split())


@pytest.mark.parametrize("command", [["status", "nope"], ["train", GLYPHS, "name=nope"]])
def test_an_address_where_nobody_listens_is_told_at_once(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = f"127.0.0.1:{free_port()}"
    status, told = call(*command, "--address", address, capsys=capsys, monkeypatch=monkeypatch)
    assert status == 2
    assert f"error: no Ray cluster can be reached at '{address}'" in told


def test_the_next_command_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(cli.app, ["init", "glyphs", str(tmp_path / "my recipe.yaml")])
    assert f"next: branchgrpo check '{tmp_path}/my recipe.yaml'" in done.output
