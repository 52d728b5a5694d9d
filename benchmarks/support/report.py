"""Reports of benchmarks: where they are written, and how a file of an earlier run is recognised."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ...proto.atomic_files import write_text

Out = Annotated[Path, typer.Option(help="Folder for the report.")]
OUT = Path("build/bench")
Rounds = Annotated[int, typer.Option(help="Measured rounds, after one to warm up.")]


def report_path(out: Path, benchmark: str, *beside: str) -> Path:
    """Where a benchmark writes its report, `out`/`benchmark`.json, and the files `beside` it.

    To be called before the work. Raises typer.BadParameter if what is there is no report of this benchmark.
    """
    path = out / f"{benchmark}.json"
    there = [file for file in (path, *(out / name for name in beside)) if file.exists()]
    if there and not _is_report(path, benchmark):
        raise typer.BadParameter(f"{there[0]} exists and isn't this benchmark's; name another folder", param_hint="out")
    return path


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, with the benchmark's name in it, to a path that `report_path` gave."""
    write_text(path, json.dumps({"benchmark": path.stem, **report}, indent=2) + "\n")


def _is_report(path: Path, benchmark: str) -> bool:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("benchmark") == benchmark
