"""How every command authenticates on a Ray cluster with a token."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from branchgrpo.benchmarks.support.local_cluster import end, free_port, reachable, started
from support import ALONE, RECIPES, done_by


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


@pytest.mark.timeout(900)
def test_every_command_finds_the_token_as_ray_does(guarded: tuple[str, str, Path], tmp_path: Path) -> None:
    """As after a first run on this machine, which makes a token, and `ray start --head`, which then wants it."""
    head, dashboard, home = guarded
    recipe = tmp_path / "recipe.yaml"
    glyphs = RECIPES / "glyphs.yaml"
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
    assert "no run 'short' is in progress on this Ray cluster; runs in progress: none" in done.stderr
    done = done_by("clean", str(tmp_path / "runs"), *at_head, **known)
    assert (done.returncode, "nothing is left" in done.stdout) == (0, True), done.stderr
    done = done_by("drain", *at_head, "--seconds", "5", **known)
    assert (done.returncode, f"is the head of the cluster at '{head}'" in done.stderr) == (2, True), done.stderr
