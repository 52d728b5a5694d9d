"""FLUX.1-dev at full size with random weights, measured on a GPU as `branchgrpo calibrate` would.

It needs neither weights nor Ray nor DeepSpeed, and takes a minute and a half.

    python -m branchgrpo.benchmarks.speed.gpu_calibration --out build/bench
    python -m branchgrpo.benchmarks.speed.gpu_calibration --tiny   (a small network on any device, to see that it runs)
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers import CLIPVisionModel

from ...cluster.commands.calibrate import show
from ...cluster.plan.calibration import Calibration
from ...cluster.plan.flops import Work, count_work
from ...cluster.plan.measuring import Batches, device_name, device_peak, measure
from ...proto.atomic_files import must_be_new
from ...proto.media import Media
from ...proto.recipe import SHIPPED, load_recipe
from ...reward_service.interface import Scores
from ...reward_service.preprocessing import cropped, prepared
from ..support.model_sizes import flux_dev
from ..support.random_flux import FULL_SCALE, TINY_SCALE, RandomFlux, Scale
from ..support.report import OUT, Out

RECIPE = "flux_hps_branch"
BATCHES = Batches(forward=16, trained=4, decode=4, score={"hps": 16})


class Tower:
    """A picture tower with random weights, in float32 as those of CLIP rewards; scores are made up."""

    def __init__(self, scale: Scale, device: torch.device) -> None:
        self.scale, self.device = scale, device
        self.network = CLIPVisionModel(scale.tower).to(device).requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, media: Media, prompts: Sequence[str]) -> Scores:
        pixels = prepared(media.looks(), self.scale.tower.image_size, cropped, self.device)
        outputs = self.network(pixel_values=pixels).pooler_output[:, 0]
        return {"hps": outputs.float().cpu().numpy().astype(float)}


def counted() -> Work:
    """The recipe's FLOPs, counted on FLUX.1-dev's configurations."""
    with TemporaryDirectory() as folder:
        return count_work(load_recipe(SHIPPED / f"{RECIPE}.yaml", [f"policy.pretrained={flux_dev(Path(folder))}"]))


def main(
    out: Out = OUT,
    tiny: Annotated[bool, typer.Option("--tiny", help="A small network, on whatever device there is.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the network.")] = False,
) -> None:
    """Measure, print a table, and write calibration.json, which `branchgrpo plan --calibration` takes.

    Example: python -m branchgrpo.benchmarks.speed.gpu_calibration --out build/bench
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not tiny:
        raise typer.BadParameter("there is no GPU; --tiny runs anywhere", param_hint="--tiny")
    path, console, scale = out / "calibration.json", Console(width=120), TINY_SCALE if tiny else FULL_SCALE
    must_be_new(path)
    work = None if tiny else counted()
    policy = RandomFlux(scale, device, compiled=compiled)
    policy.checkpoint_gradients()
    peak, source = device_peak(device, "bfloat16")
    found = []
    for measured in measure(policy, BATCHES, work, peak, {"hps": Tower(scale, device)}):
        console.print(measured, highlight=False)
        found.append(measured)
    paces = {own.work: own.pace for own in found}
    calibration = Calibration(device_name(device), peak, source, "bfloat16", RECIPE, paces)
    calibration.save(path)
    show(calibration, found, console)


if __name__ == "__main__":
    typer.run(main)
