"""What recording trees costs: iterations of the demo with all of it, without previews of splits, and with none.

Loops of the demo's recipe take turns, iteration by iteration, over the same prompts with the same seed: all do the same
work. In one process, seconds are those of its CPU; on Ray (`--execution ray`), those on the clock.

    python -m branchgrpo.benchmarks.speed.recorded_trees --out build/bench
"""

import time
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from ...cluster.run.in_process import InProcessLoop
from ...cluster.run.loop import Loop
from ...cluster.run.tree_record import recorded_trees, write
from ...proto.settings import LoggingSettings
from ..support.demo import PROMPTS, demo
from ..support.report import OUT, Out, Rounds, report_path, write_report

VARIANTS: dict[str, dict[str, Any]] = {"none": {"trees_every": 0}, "pictures": {"tree_previews": False}, "previews": {}}
PROCESS = {"cpus": 0.2, "threads": 1}


def loop_of(name: str, folder: Path, execution: str) -> Loop:
    """The demo's loop that records as a variant does, in every iteration."""
    logging = {"tensorboard": False, "samples_every": 0, "trees_every": 1, "trace": False, **VARIANTS[name]}
    pools = {"rollout_workers": PROCESS, "learner": PROCESS, "rewards": {"ocr": PROCESS}}
    settings = demo({"name": name, "runs": str(folder), "threads": 1, "logging": logging, "pools": pools})
    if execution == "in_process":
        return InProcessLoop(settings.model_copy(update={"execution": "in_process"}), PROMPTS)
    from ...cluster.on_ray.driver import RayLoop

    (folder / name).mkdir()
    return RayLoop(settings, folder / name, PROMPTS, None)


def main(
    out: Out = OUT,
    rounds: Rounds = 6,
    execution: Annotated[Literal["in_process", "ray"], typer.Option()] = "in_process",
) -> None:
    """Measure what recording trees adds to an iteration."""
    path = report_path(out, f"recorded_trees_{execution}")
    clock = time.process_time if execution == "in_process" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with TemporaryDirectory() as name, ExitStack() as loops:
        folder = Path(name)
        made = {name: loops.enter_context(closing(loop_of(name, folder, execution))) for name in VARIANTS}
        for iteration in range(1, rounds + 2):
            order = [*made] if iteration % 2 else [*reversed(made)]
            for variant in order:
                start = clock()
                for record in made[variant].iterate(iteration).trees:
                    write(folder / variant, record)
                seconds[variant].append(clock() - start)
        sizes = [file.stat().st_size for file in recorded_trees(folder / "previews").values()]
    console, every = Console(), LoggingSettings().trees_every
    ratios = {
        variant: median(with_it / without for with_it, without in zip(own[1:], seconds["none"][1:], strict=True))
        for variant, own in seconds.items()
    }
    for variant, ratio in ratios.items():
        share = (ratio - 1) / every
        console.print(f"{variant}: {ratio:.3f} times the seconds when recorded; every {every} iterations {share:.2%}")
    console.print(f"{sum(sizes) / len(sizes) / 1000:.0f} kB a tree")
    write_report(path, {"seconds per iteration": seconds, "ratio": ratios, "bytes": sizes})
    console.print(f"JSON: {path}")


if __name__ == "__main__":
    typer.run(main)
