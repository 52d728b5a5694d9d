"""A run of FLUX.1-dev at full size on one GPU, beside what `branchgrpo plan` says of it.

The pipeline, its text encoders and PickScore's model are written to a folder with random weights, as they are
published: 40 GB. Then it goes as for a user, in one process: the recipe is measured as `branchgrpo calibrate` does,
planned with that, and trained as `branchgrpo train` does. Its seconds and its memory stand beside the planned ones.
Needs neither Ray nor DeepSpeed.

    python -m branchgrpo.benchmarks.speed.gpu_run --out build/bench
    python -m branchgrpo.benchmarks.speed.gpu_run --tiny   (a small network on any device, to see that all of it runs)
"""

import gc
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers import CLIPConfig, CLIPModel

from ...cluster.commands.calibrate import calibration_batches, show
from ...cluster.plan.calibration import Calibration, device_of
from ...cluster.plan.flops import count_work
from ...cluster.plan.forecast import forecast
from ...cluster.plan.measuring import device_name, device_peak, learning_policy, measure
from ...cluster.plan.memory import count_memory
from ...cluster.plan.prices import Prices
from ...cluster.run.console import RunDisplay
from ...cluster.run.folder import RunFolder
from ...cluster.train import train
from ...proto.settings import RunSettings
from ...proto.settings_errors import parse_settings
from ...reward_service.interface import reading
from ...reward_service.scorers import load_scorer
from ...rollout_workers.glyphs.pretrain import character_tokenizer
from ..support.model_sizes import clip_text, write_pipeline
from ..support.random_flux import FULL_SCALE, TINY_SCALE, Scale, made_in
from ..support.report import OUT, Out, report_path, write_report

RUN, REWARD = "gpu_run", "pick_score"
ITERATIONS = 3
"""Number of iterations. Kernels are chosen in the first, which isn't counted."""
PROMPTS = "a red cube\na blue ball\nan old boat\na green cup\n"
PHASES = {"sampling": "rollout", "scoring": "scoring", "learning": "learning"}
"""Phase of a plan -> phase of a run."""
GPU_KINDS = ("gpu_seconds", "utilisation")
"""What a run's log tells of its GPU, by phase."""


def write_models(folder: Path, scale: Scale, device: torch.device) -> None:
    """Write the pipeline and the reward model, one network after the other, made on the device."""
    with torch.device(device):
        with made_in(torch.bfloat16):
            parts = scale.parts()
        write_pipeline(folder / "flux", parts, weights=True)
        del parts
        text, tokenizer = clip_text(1024, 4096, 16, 24) if scale is FULL_SCALE else scale.clip, character_tokenizer()
        texts = {**text.to_dict(), "vocab_size": len(tokenizer)}
        model = CLIPModel(CLIPConfig(text_config=texts, vision_config=scale.tower.to_dict()))
    model.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    (folder / "prompts.txt").write_text(PROMPTS)


def recipe(folder: Path, runs: Path, scale: Scale) -> RunSettings:
    """One tree of 16 leaves for an iteration, by the mix variant with five deterministic steps taken as one, and a
    LoRA."""
    full = scale is FULL_SCALE
    size = {"height": scale.pixels, "width": scale.pixels, "max_sequence_length": scale.tokens}
    mix = {"method": "branch_grpo_mix", "kernel": "dance", "eta": 0.3}
    splits = {"splits": {0: 2, 3: 2, 6: 2, 9: 2}, "window": 4, "ode_stride": 5} if full else {"splits": {0: 2, 1: 2}}
    return parse_settings(
        {
            "name": RUN,
            "runs": str(runs),
            "iterations": ITERATIONS,
            "execution": "in_process",
            "policy": {"pretrained": str(folder / "flux"), **size, "guidance_scale": 3.5, "precision": "bfloat16"},
            "prompts": {"train": str(folder / "prompts.txt"), "per_iteration": 1},
            "schedule": {**mix, "steps": 20 if full else 6, **splits},
            "rollout": {"trees_per_task": 1, "max_batch_rows": 16, "decode_batch": 4},
            "rewards": {REWARD: {"pretrained": str(folder / "clip")}},
            "learner": {
                "lora": {"rank": 32, "alpha": 64},
                "gradient_checkpointing": True,
                "window_trees": 1,
                "rows_per_micro_batch": 4,
                "optimizer": {"learning_rate": 1e-4},
            },
            "pools": {"rewards": {REWARD: {"batch_pictures": 16}}},
        }
    )


def calibrated(settings: RunSettings, console: Console) -> Calibration:
    """What the device does with this recipe."""
    policy = learning_policy(settings)
    given = settings.rewards[REWARD]
    scorers = {REWARD: reading(load_scorer(REWARD, given, None), given.reads)}
    peak, source = device_peak(policy.device, settings.policy.precision)
    found = list(measure(policy, calibration_batches(settings), count_work(settings), peak, scorers))
    paces = {own.work: own.pace for own in found}
    name = device_name(policy.device)
    calibration = Calibration(name, peak, source, settings.policy.precision, settings.name, paces)
    show(calibration, found, console)
    return calibration


def planned(settings: RunSettings, calibration: Calibration) -> dict[str, float]:
    """Seconds of an iteration and of its phases, and GB."""
    expected = forecast(settings, Prices.of(settings, (device_of(calibration), calibration)))
    (memory,) = count_memory(settings).values()
    seconds = {run: expected.phases[plan] for plan, run in PHASES.items()}
    return {"iteration": expected.seconds, **seconds, "GB": memory.peak / 1e9}


def measured(settings: RunSettings, console: Console) -> dict[str, Any]:
    """The same of a run, the means of all iterations but the first; and what else its log tells."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    run = train(settings, RunDisplay(console))
    lines = RunFolder(run).lines("metrics")[1:]

    def means(kind: str) -> dict[str, float]:
        return {phase: fmean(line[kind][phase] for line in lines) for phase in lines[-1].get(kind, {})}

    seconds = means("busy_seconds")
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
    return {
        "iteration": fmean(line["seconds"] for line in lines),
        **{phase: seconds[phase] for phase in PHASES.values()},
        "GB": peak,
        **{kind: means(kind) for kind in ("cpu_seconds", *GPU_KINDS)},
        "rows trained": lines[-1]["rows"],
    }


def compare(plan: Mapping[str, float], run: Mapping[str, Any], title: str) -> Table:
    """A table of both."""
    table = Table("", "planned", "run", "planned / run", "GPU, s", "utilisation", title=title)
    for name, expected in plan.items():
        found = run[name]
        cells = found, expected / found if found else None, *(run[kind].get(name) for kind in GPU_KINDS)
        table.add_row(name, f"{expected:.3g}", *("" if cell is None else f"{cell:.3g}" for cell in cells))
    return table


def main(
    out: Out = OUT,
    tiny: Annotated[bool, typer.Option("--tiny", help="A small network, on whatever device there is.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where to put the models meanwhile, in memory best.")] = None,
) -> None:
    """Write the models, calibrate, plan and train; print a table, and write gpu_run.json and the folder of the run.

    Example: python -m branchgrpo.benchmarks.speed.gpu_run --out build/bench --folder /dev/shm
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not tiny:
        raise typer.BadParameter("there is no GPU; --tiny runs anywhere", param_hint="--tiny")
    path, scale = report_path(out, "gpu_run", RUN), TINY_SCALE if tiny else FULL_SCALE
    console = Console(file=sys.stdout, width=120)  # as it is now: the run takes over what others print
    about = {"device": device_name(device), "tiny": tiny}
    write_report(path, about)  # from now on the folder is this benchmark's, also if it is cut off
    shutil.rmtree(out / RUN, ignore_errors=True)
    with TemporaryDirectory(dir=folder) as temporary:
        torch.manual_seed(0)
        write_models(Path(temporary), scale, device)
        _release()
        settings = recipe(Path(temporary), out, scale)
        plan = planned(settings, calibrated(settings, console))
        _release()
        run = measured(settings, console)
    write_report(path, {**about, "planned": plan, "run": run})
    console.print(compare(plan, run, device_name(device)))


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    typer.run(main)
