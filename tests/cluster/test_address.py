"""Which Ray a command speaks to, and how it authenticates there."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from branchgrpo.benchmarks.support.local_cluster import end, free_port, reachable, started
from branchgrpo.cluster.on_ray import address as addresses
from branchgrpo.cluster.on_ray.address import LocalNode, find_cluster, find_ray, nodes_here
from branchgrpo.cluster.on_ray.run_address import RunAddress
from branchgrpo.proto.errors import InputError
from support import command, until

ALONE = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}


def done_by(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), env=ALONE | environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", "'nonsense' is no address of a Ray cluster; name its head as host:port"),
        ("localhost:99999", "'localhost:99999' is no address of a Ray"),
        ("http://head:8265", "'http://head:8265' is no address of a Ray"),
        ("nowhere.invalid:6379", "no Ray cluster can be reached at 'nowhere.invalid:6379'"),
        ("ray://127.0.0.1:{free}", "no Ray cluster can be reached at 'ray://127.0.0.1:"),
        ("127.0.0.1:{free}", "Connection refused"),
        ("127.0.0.1:{silent}", "is no head of a Ray that answers"),
    ],
)
def test_what_is_no_ray_is_told(address: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "SECONDS", 1)
    monkeypatch.delenv("RAY_AUTH_MODE")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        given = address.format(free=free_port(), silent=silent.getsockname()[1])
        with pytest.raises(InputError) as refusal:
            find_ray(given)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_no_ray_is_guessed_among_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    two = [LocalNode("10.0.0.1:6379", "a"), LocalNode("10.0.0.1:6380", "b")]
    monkeypatch.setattr(addresses, "nodes_here", lambda: two)
    with pytest.raises(
        InputError, match="several Ray clusters run on this machine, at 10.0.0.1:6379, 10.0.0.1:6380; name one"
    ):
        find_ray(None)
    monkeypatch.setattr(addresses, "nodes_here", list)
    with pytest.raises(InputError, match="no Ray cluster runs on this machine"):
        find_ray("auto")
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(InputError, match="'nonsense' is no address of a Ray"):
        find_ray("auto")
    monkeypatch.delenv("RAY_ADDRESS")
    assert find_cluster(None) is None
    assert find_cluster("local") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "can't be read"),
        ('{"run": "a", "addr', "can't be read"),
        (b"\xff\xfe", "can't be read"),
        ("[]", "isn't what this version writes"),
        ('{"run": "a", "later": 1}', "isn't what this version writes"),
        ('{"run": 1}', "isn't what this version writes"),
        ('{"address": "a:1"}', "isn't what this version writes"),
    ],
)
def test_a_note_that_is_broken_is_told(content: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: a\n")
    (tmp_path / "ray.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        RunAddress.find(str(tmp_path), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["node", "nonsense"], "'nonsense' is no address of a Ray"),
        (["drain", "--address", "nonsense"], "'nonsense' is no address of a Ray"),
        (["drain", "--seconds", "nan"], "--seconds is nan; it must be from 0 to"),
        (["scale", "mine", "--rollout-workers", "2", "--address", "127.0.0.1:1"], "no Ray cluster can be reached"),
        (["clean", "--address", "127.0.0.1:1"], "no Ray cluster can be reached"),
        (["draw-dashboards", "mine", "--minutes", "nan"], "--minutes is nan; it must be from 0 to"),
        (["draw-dashboards", "mine", "--minutes=-1"], "--minutes is -1; it must be from 0 to"),
        (["draw-dashboards", "mine", "--prometheus", "nonsense"], "--prometheus is 'nonsense', which doesn't answer"),
        (["submit", "{glyphs}", "runs=/tmp/none", "--address", "http://:x"], "no Ray cluster can be reached"),
    ],
)
def test_a_command_without_its_ray_says_so_in_a_line(arguments: list[str], message: str) -> None:
    glyphs = Path(__file__).parents[2] / "recipes" / "glyphs.yaml"
    done = done_by(*(argument.replace("{glyphs}", str(glyphs)) for argument in arguments))
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert message in done.stderr


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Head and dashboard of a Ray with a token, which is in the home that is the third."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("a" * 64)
    port, dashboard = free_port(), free_port()
    options = (f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}")
    size = ("--num-cpus=4", "--object-store-memory=200000000")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where a job finds its python
    process = started("--head", *options, *size, environment=ALONE | {"HOME": str(home), "PATH": path})
    try:
        assert reachable(port)
        assert reachable(dashboard)
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", home
    finally:
        end(process)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_finds_the_token_as_ray_does(guarded: tuple[str, str, Path], tmp_path: Path) -> None:
    """As after a first run on this machine, which makes a token, and `ray start --head`, which then wants it."""
    head, dashboard, home = guarded
    recipe = tmp_path / "recipe.yaml"
    glyphs = Path(__file__).parents[2] / "recipes" / "glyphs.yaml"
    recipe.write_text(
        f"base: {glyphs}\nname: short\nruns: {tmp_path / 'runs'}\niterations: 1\n"
        "prompts: {per_iteration: 2}\nlearner: {updates_per_iteration: 1}\nevaluation: {prompts: 2}\n"
    )
    at_head, at_dashboard = ("--address", head), ("--address", dashboard)
    known, unknown = {"HOME": str(home)}, {"HOME": str(tmp_path)}
    for arguments in (
        ("train", str(recipe), *at_head),
        ("submit", str(recipe), *at_dashboard),
        ("status", "short", *at_head),
        ("scale", "short", "--rollout-workers", "1", *at_head),
        ("drain", *at_head),
        ("clean", str(tmp_path), *at_head),
        ("node", head),
    ):
        done = done_by(*arguments, **unknown)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
        assert "requires a token, and" in done.stderr
        done = done_by(*arguments, **unknown, RAY_AUTH_TOKEN="b" * 64)
        assert "rejects the token in RAY_AUTH_TOKEN" in done.stderr
    assert not (tmp_path / "runs").exists()

    done = done_by("submit", str(recipe), *at_dashboard, "name=submitted", **known)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    done = done_by("train", str(recipe), *at_head, **known)
    assert done.returncode == 0, done.stderr[-3000:]
    done = done_by("status", "short", *at_head, **known)
    assert "no run 'short' runs there; there is none" in done.stderr
    done = done_by("clean", str(tmp_path / "runs"), *at_head, **known)
    assert (done.returncode, "nothing is left" in done.stdout) == (0, True), done.stderr
    done = done_by("drain", *at_head, "--seconds", "5", **known)
    assert done.returncode == 0, done.stderr
    assert f"of the cluster at {head} is drained" in done.stdout


def test_the_nodes_of_this_machine_are_found(head: str) -> None:
    port = head.rpartition(":")[2]
    # A head answers before its own node is there.
    until(lambda: port in {node.address.rpartition(":")[2] for node in nodes_here()}, 60)
