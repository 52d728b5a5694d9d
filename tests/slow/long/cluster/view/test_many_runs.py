"""Two hundred runs of a thousand iterations: the server shows them all, and its memory stays small."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

import psutil
from branchgrpo.benchmarks.support.local_cluster import end
from run_folders import write_run
from support import ALONE, command

RUNS, ITERATIONS = 200, 1000
MAX_BYTES = 400 * 10**6


def test_many_long_runs_take_little_memory(tmp_path: Path) -> None:
    first = write_run(tmp_path / "runs" / "run-000", ITERATIONS)
    means = [{"iteration": number, "ocr": number / ITERATIONS} for number in range(0, ITERATIONS + 1, 10)]
    (first / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in means))
    for number in range(1, RUNS):
        shutil.copytree(first, tmp_path / "runs" / f"run-{number:03d}")
    serving = command("view", tmp_path / "runs", "--port", "0")
    process = subprocess.Popen(serving, env=ALONE | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        address = process.stdout.readline().split()[-1]

        def page(path: str) -> str:
            start, used = time.perf_counter(), cpu_seconds(process.pid)
            with urlopen(address + path, timeout=120) as answer:
                text = answer.read().decode()
            used = cpu_seconds(process.pid) - used
            print(f"{path}: {time.perf_counter() - start:.2f} s, {used:.2f} s of CPU, {len(text) / 1e6:.2f} MB")
            return text

        for _ in range(2):
            assert len(re.findall(r'<tr id="run-', page("/"))) == RUNS
        for number in range(60):
            assert "iteration 1000 of 1000" in " ".join(page(f"/overview/run-{number:03d}").split())
        chosen = "&".join(f"run=run-{number:03d}" for number in range(0, RUNS, 10))
        assert "Compare 20 runs" in page(f"/compare?{chosen}")
        used = psutil.Process(process.pid).memory_info().rss
        print(f"memory: {used / 1e6:.0f} MB")
        assert used < MAX_BYTES
    finally:
        end(process)


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
