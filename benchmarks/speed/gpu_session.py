"""All that is to be measured on a GPU, one benchmark after the other within a limit of time.

The most wanted come first: sequential samples beside trees, a run beside its plan, compiled networks, what decoders
hold. Each is a process, so that none finds the card's memory taken. When the time is over, the one at work is
ended; a second call with the same folder goes on there.

    python -m branchgrpo.benchmarks.speed.gpu_session --out build/bench
    python -m branchgrpo.benchmarks.speed.gpu_session --tiny   (small networks on any device)
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..support.report import OUT, Out, report_path, write_report
from .gpu import STRIDES

SECONDS = 570.0
EAGER = ("batch of 1", "batch of 4", "batch of {rows}", STRIDES, "sequential", "tree")
COMPILED = ("batch of {rows}", STRIDES, "tree")
"""Parts of the benchmark `gpu` that come before its others; once without and once with `torch.compile`."""


def commands(out: Path, tiny: bool) -> dict[str, list[str]]:
    """What is to be done, in this order."""
    to, rows = ["--out", str(out), *(["--tiny"] if tiny else [])], 4 if tiny else 16
    small = [f"--rows={rows}", *(["--steps=6"] if tiny else [])]
    gpu = [*_module("gpu"), *to, "--times=1", *small]
    models = ["--folder=/dev/shm"] if Path("/dev/shm").is_dir() else []
    return {
        "sequential, tree and mix": [*gpu, "--no-compile", *_only(EAGER, rows)],
        "a run": [*_module("gpu_run"), *to, *models],
        "compiled": [*gpu, *_only(COMPILED, rows)],
        "memory": [*_module("gpu_memory"), *to],
        "the rest": [*gpu, "--no-compile"],
        "the rest, compiled": gpu,
    }


def _only(parts: Sequence[str], rows: int) -> list[str]:
    return [f"--part={part.format(rows=rows)}" for part in parts]


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"branchgrpo.benchmarks.speed.{name}"]


def left(steps: Mapping[str, Sequence[str]], path: Path, seconds: float) -> Iterator[str]:
    """Do the steps that the report at `path` doesn't call done, and note each there. Gives the names of those that are
    left when so many seconds are over. A step that fails is left, too, and the next one begins."""
    done: list[str] = json.loads(path.read_text())["done"] if path.is_file() else []
    limit = time.monotonic() + seconds
    for name, command in steps.items():
        if name in done:
            continue
        if (remaining := limit - time.monotonic()) <= 0:
            yield name
            continue
        try:
            subprocess.run(command, check=True, timeout=remaining)
        except subprocess.TimeoutExpired:
            yield name
        except subprocess.CalledProcessError as error:
            yield f"{name} (failed with {error.returncode})"
        else:
            done.append(name)
            write_report(path, {"done": done})


def main(
    out: Out = OUT,
    tiny: Annotated[bool, typer.Option("--tiny", help="Small networks, on whatever device there is.")] = False,
    seconds: Annotated[float, typer.Option(help="When these are over, the rest is left to another call.")] = SECONDS,
) -> None:
    """Measure, and write down what is done.

    Example: python -m branchgrpo.benchmarks.speed.gpu_session --out build/bench --seconds 300
    """
    path, console = report_path(out, "gpu_session"), Console(width=120)
    for name in left(commands(out, tiny), path, seconds):
        console.print(f"left: {name}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
