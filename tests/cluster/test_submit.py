"""Submitting: what travels, what is refused, and whole runs as jobs on a head with one more node."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
import requests
from branchgrpo.benchmarks.support.local_cluster import end, free_port, reachable, started
from branchgrpo.cluster import cli
from branchgrpo.cluster.commands.submit import check, connect, follow, stage_package
from branchgrpo.cluster.on_ray.connect import connected
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.proto.errors import InputError, RunFailed
from branchgrpo.proto.recipe import load_recipe, save_recipe
from branchgrpo.proto.settings import RunSettings
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_actors, list_nodes, list_objects
from ray.util.state.exception import RayStateApiException
from support import SMALL, Settings, assert_bit_equal, command, recipe_in, until, weights

Submit = Callable[..., subprocess.Popen[str]]
ROOT = Path(__file__).parents[2]


def files_of_the_package() -> set[Path]:
    """What a wheel would hold, by pyproject.toml."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = {package: ["*.py", *setuptools["package-data"].get(package, [])] for package in setuptools["packages"]}
    return {
        file.relative_to(ROOT)
        for package, globs in patterns.items()
        for glob in globs
        for file in ROOT.joinpath(*package.split(".")[1:]).glob(glob)
        if file.is_file()
    }


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_stops_following_is_told_that_the_run_goes_on(
    signum: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Client:
        def get_address(self) -> str:
            return "http://head:8265"

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "iteration 1\n"
            os.kill(os.getpid(), signum)
            await asyncio.sleep(60)

    monkeypatch.setattr("branchgrpo.cluster.on_ray.address.use_dashboard", lambda address: None)
    monkeypatch.setattr("branchgrpo.cluster.commands.submit.check", lambda settings: None)
    monkeypatch.setattr("branchgrpo.cluster.commands.submit.connect", lambda address: Client())
    monkeypatch.setattr("branchgrpo.cluster.commands.submit.submit", lambda *given, **named: "branchgrpo-glyphs-1")
    monkeypatch.setattr(sys, "argv", ["branchgrpo", "submit", "glyphs"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 128 + signum
    told = capsys.readouterr().out
    assert "iteration 1\nthe run continues; follow it with: " in told
    assert "ray job stop branchgrpo-glyphs-1 --address http://head:8265" in told


def test_what_is_staged_is_what_a_wheel_would_hold(tmp_path: Path) -> None:
    staged = stage_package(tmp_path)
    assert staged.name == "branchgrpo"
    assert {file.relative_to(staged) for file in staged.rglob("*") if file.is_file()} == files_of_the_package()


def test_the_staged_package_is_importable_by_itself(tmp_path: Path) -> None:
    stage_package(tmp_path)
    code = (
        "import pathlib, branchgrpo, branchgrpo.cluster.on_ray.driver as loop, branchgrpo.proto.recipe as recipe\n"
        "train = recipe.load_recipe(pathlib.Path('glyphs')).prompts.train\n"
        "print(branchgrpo.__file__, loop.__file__, train, sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert all(file.startswith(str(tmp_path)) for file in done.stdout.split())


def test_a_saved_recipe_brings_its_prompts(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings()
    save_recipe(settings, tmp_path / "here").parent.rename(tmp_path / "there")
    original = settings.prompts.train.read_text().split()
    settings.prompts.train.unlink()
    loaded = load_recipe(tmp_path / "there" / "recipe.yaml")
    assert loaded.prompts.train == tmp_path / "there" / "prompts" / "train.txt"
    assert loaded.prompts.train.read_text().split() == original
    assert loaded.model_copy(update={"prompts": settings.prompts}) == settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": "runs"}, "runs is 'runs'; name an absolute folder that all nodes of the cluster share"),
        ({"policy.pretrained": "models/flux"}, "policy.pretrained is 'models/flux'; it must be .* an absolute path"),
        ({"policy.device": "abacus"}, "policy.device is 'abacus'"),
        ({"execution": "in_process"}, "execution is 'in_process'; a run on a cluster needs execution 'ray'"),
        ({"rewards": {"beauty": {}}}, "unknown reward 'beauty'"),
        ({"pools.rewards": {"beauty": {}}}, "pools.rewards names 'beauty'"),
        ({"prompts.held_out": "/nowhere.txt"}, "prompts.held_out is '/nowhere.txt'; no such file"),
    ],
)
def test_mistakes_are_found_before_anything_is_submitted(
    changes: dict[str, Any], message: str, run_settings: Settings
) -> None:
    with pytest.raises(InputError, match=message):
        check(run_settings({"execution": "ray", **changes}))


def test_what_only_the_cluster_may_have_is_left_to_it(run_settings: Settings) -> None:
    check(
        run_settings(
            {
                "execution": "ray",
                "policy.pretrained": "/only/on/the/cluster",
                "policy.device": "cuda",
                "rewards": {"mine": {"scorer": "only_on_the.cluster:load"}},
                "pools.rewards": {"mine": {"gpus": 1}},
            }
        )
    )


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "127.0.0.1:{port}"])
def test_an_address_without_a_cluster_is_one_clear_line(
    address: str, run_settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    recipe = save_recipe(run_settings({"execution": "ray"}), tmp_path / "recipe")
    address = address.format(port=free_port())
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    monkeypatch.setattr(sys, "argv", ["branchgrpo", "submit", str(recipe)])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"no Ray cluster can be reached at '{address}'" in line
    assert exit.value.code == 2


def test_a_lost_connection_is_told_with_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(BaseHTTPRequestHandler):
        """A job server that answers the first question only."""

        def do_GET(self) -> None:
            known = self.path == "/api/version"
            self.send_response(200 if known else 500)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": "2.60.0"}).encode() if known else b"")

    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)  # `connect` sets it, and other tests must not see it
        with pytest.raises(RunFailed, match=f"lost the connection .*ray job logs mine --follow --address {address}"):
            follow(connect(address), "mine")
        server.shutdown()


def test_prompts_are_the_same_wherever_they_lie(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings()
    with RunFolder.create(settings) as folder:
        folder.append("metrics", {"iteration": 1})
    moved = settings.prompts.train.rename(tmp_path / "moved.txt")
    prompts = settings.prompts.model_copy(update={"train": moved, "held_out": moved})
    settings = settings.model_copy(update={"prompts": prompts})
    with RunFolder.resume(settings) as folder:
        assert not [change for change in folder.changes if change.setting == "prompts.train"]
    moved.write_text(moved.read_text() + "\n999")
    with RunFolder.resume(settings) as folder:
        (change,) = [change for change in folder.changes if change.setting == "prompts.train"]
    assert (str(change.before)[:10], str(change.now)[:10]) == ("14 prompts", "15 prompts")


def test_variables_that_a_job_sets_itself_win(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    job = {"runtime_env": {"env_vars": {"HF_HUB_OFFLINE": "0", "MINE": "1"}}, "metadata": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    with connected(head):
        variables = ray.get_runtime_context().runtime_env["env_vars"]
    assert (
        variables.items()
        >= {
            "HF_HUB_OFFLINE": "0",
            "MINE": "1",
            "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
        }.items()
    )


# End to end ---------------------------------------------------------------------------------------------------------

ITERATIONS = 6
RUN = {
    # Advantages need rewards that differ; the tiny policy's pictures hold no text.
    "policy.pretrained": "glyphs",
    "policy.height": 32,
    "policy.width": 64,
    "threads": 1,
    "execution": "ray",
    "staleness": 1,
    "iterations": ITERATIONS,
    "checkpoint.every": ITERATIONS,
    "prompts.per_iteration": 8,
    "pools": {
        "learner": SMALL,
        "rollout_workers": {**SMALL, "labels": {"rack": "second"}},
        "rewards": {"ocr": {**SMALL, "deterministic": True, "resources": {"second": 1}}},
    },
}
NOTE_IMPORT = """
with open({log!r}, "a") as log:
    log.write(__file__ + "\\n")
"""


@dataclass
class Cluster:
    """A head and a second node, each with a folder of its own for Ray's files."""

    address: str
    folders: tuple[Path, Path]
    client: JobSubmissionClient

    def leftovers(self) -> dict[str, Any]:
        """What is on the cluster beside Serve's own controller."""
        actors = list_actors(address=self.address, filters=[("state", "!=", "DEAD")])
        applications = requests.get(f"{self.address}/api/serve/applications/", timeout=60).json()["applications"]
        return {
            "actors": [actor.class_name for actor in actors if actor.class_name != "ServeController"],
            "objects": list_objects(address=self.address),
            "applications": list(applications),
        }

    def running(self) -> str:
        """The job that is running, or nothing."""
        running = [job.submission_id for job in self.client.list_jobs() if job.status == JobStatus.RUNNING]
        return (running[0] or "") if running else ""


def nodes(address: str) -> int:
    """How many nodes the dashboard at `address` knows; none while it starts."""
    with suppress(RayStateApiException):
        return len(list_nodes(address=address))
    return 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    port, dashboard = free_port(), free_port()
    address = f"http://127.0.0.1:{dashboard}"
    head_folder, second_folder = (Path(tempfile.mkdtemp(prefix=f"ray-{name}-")) for name in ("head", "second"))
    processes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # where the job finds its python
        try:
            head = ("--head", f"--port={port}", "--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}")
            second = (f"--address=127.0.0.1:{port}", "--labels=rack=second", '--resources={"second": 4}')
            for arguments, folder in [(head, head_folder), (second, second_folder)]:
                common = (f"--temp-dir={folder}", f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=4")
                processes.append(started(*arguments, *common, "--object-store-memory=300000000"))
                assert reachable(port)
                assert reachable(dashboard)
            until(lambda: nodes(address) == 2)
            yield Cluster(address, (head_folder, second_folder), JobSubmissionClient(address))
        finally:
            for process in reversed(processes):
                end(process)
            for folder in (head_folder, second_folder):
                shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with a package that differs from the installed one: it notes from where it is imported, in a file."""
    folder = tmp_path_factory.mktemp("package")
    log = folder / "imports.txt"
    with (stage_package(folder) / "__init__.py").open("a") as file:
        file.write(NOTE_IMPORT.format(log=str(log)))
    return folder, log


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all nodes share."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def submit(cluster: Cluster, package: tuple[Path, Path], shared: Path) -> Submit:
    """Begins `branchgrpo submit`."""

    def begin(settings: RunSettings, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command("submit", recipe_in(shared, settings), "--address", cluster.address, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=shared,
            env={**os.environ, "PYTHONPATH": str(package[0]), "RAY_ADDRESS": "auto"},
        )

    return begin


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and output of a command."""
    try:
        output, _ = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(process.communicate()[0]) from None
    return process.returncode, output


@pytest.fixture(scope="module")
def straight(settings_in: Settings, submit: Submit, shared: Path) -> tuple[RunSettings, str]:
    """A run that was submitted and came to its end undisturbed, and what its submitter saw."""
    settings = settings_in(shared, {**RUN, "name": "straight"})
    status, output = finished(submit(settings))
    assert status == 0, output
    return settings, output


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_submitted_run_uses_both_nodes_and_the_package_sent_along(
    cluster: Cluster, straight: tuple[RunSettings, str], submit: Submit, package: tuple[Path, Path]
) -> None:
    settings, output = straight
    assert f"iteration    {ITERATIONS}" in output
    assert "has succeeded" in output
    folder = RunFolder.open(settings.runs / "straight")
    assert folder.settings.prompts.train.read_text().splitlines() == settings.prompts.train.read_text().splitlines()
    assert folder.checkpoints() == [ITERATIONS]
    assert json.loads((folder.path / "summary.json").read_text())["iterations"] == ITERATIONS
    until(lambda: not any(cluster.leftovers().values()))

    imports = {Path(line) for line in package[1].read_text().splitlines()} - {package[0] / "branchgrpo" / "__init__.py"}
    assert all("py_modules_files" in file.parts for file in imports)
    assert {root for root in cluster.folders for file in imports if root in file.parents} == set(cluster.folders)

    status, output = finished(submit(settings))
    assert status == 1, output
    assert "give --resume to continue it" in output
    assert "has failed" in output


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_stopped_run_leaves_nothing_but_a_checkpoint_and_goes_on_bit_by_bit(
    cluster: Cluster, straight: tuple[RunSettings, str], submit: Submit
) -> None:
    settings = straight[0].model_copy(update={"name": "stopped"})
    folder = RunFolder(settings.runs / "stopped")
    process = submit(settings)
    until((folder.path / "metrics.jsonl").exists)
    job = cluster.running()
    assert job.startswith("branchgrpo-stopped-")
    cluster.client.stop_job(job)
    status, output = finished(process)
    assert status == 128 + signal.SIGTERM, output
    assert "with a checkpoint; continue with --resume" in output
    (done,) = folder.checkpoints()
    assert done < ITERATIONS
    until(lambda: not any(cluster.leftovers().values()))

    process = submit(settings, "--resume")
    until(cluster.running)
    process.send_signal(signal.SIGINT)  # ends the following, not the run
    status, output = finished(process)
    assert status == 128 + signal.SIGINT, output
    job = cluster.running()
    assert f"ray job stop {job} --address {cluster.address}" in output
    until(lambda: not cluster.running())
    assert cluster.client.get_job_status(job) == JobStatus.SUCCEEDED, cluster.client.get_job_logs(job)
    assert_bit_equal(weights(settings.runs / "straight"), weights(folder.path))
    assert [line["iteration"] for line in folder.lines("metrics")] == list(range(1, ITERATIONS + 1))
    until(lambda: not any(cluster.leftovers().values()))
