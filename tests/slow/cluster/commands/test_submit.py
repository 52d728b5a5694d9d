"""Whole runs as jobs on a head with one more node."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from branchgrpo.benchmarks.support.local_cluster import end, free_port, reachable, started
from branchgrpo.cluster.commands.submit import stage_package
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.proto.settings import RunSettings
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_actors, list_nodes, list_objects
from ray.util.state.exception import RayStateApiException
from support import GLYPHS, SMALL, Settings, assert_bit_equal, command, recipe_in, until, weights

Submit = Callable[..., subprocess.Popen[str]]
ITERATIONS = 6
RUN = {
    **GLYPHS,
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


@pytest.mark.timeout(1200)
def test_a_submitted_run_uses_both_nodes_and_its_package(
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


@pytest.mark.timeout(1200)
def test_a_stopped_run_leaves_only_a_checkpoint_and_continues(
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
