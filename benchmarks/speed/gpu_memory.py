"""What a GPU's allocator holds at its peaks, beside what `branchgrpo check` says before: FLUX.1-dev at full size.

With random weights, in bfloat16: rollout, decoding and micro-batches with a LoRA and gradient checkpoints; then a
network of fewer blocks that is trained in full without checkpoints. Needs neither Ray nor DeepSpeed.

    python -m branchgrpo.benchmarks.speed.gpu_memory --out build/bench
    python -m branchgrpo.benchmarks.speed.gpu_memory --tiny   (small networks on any device, to see that all of it runs)
"""

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from ...cluster.plan.memory_tables import UNITS
from ...cluster.plan.passes import Calls, measure_pass
from ...proto.settings import LoraSettings
from ...rollout_workers.policies.base import trainable
from ..support.allocated import peak_bytes
from ..support.random_flux import FULL_SCALE, TINY_SCALE, RandomFlux, Scale
from ..support.report import OUT, Out, report_path, write_report

ROWS = {"forward": (1, 4, 16), "decode": (1, 4), "train": (1, 4)}
"""Call -> its numbers of rows or leaves."""
FEW_BLOCKS = {"num_layers": 2, "num_single_layers": 4}


@dataclass(frozen=True)
class Compared:
    """A call's peak as it was planned and as it was, bytes."""

    network: str
    call: str
    rows: int
    weights_planned: float
    weights: float
    activations_planned: float
    activations: float

    @property
    def ratio(self) -> float:
        """Planned over allocated bytes, of both."""
        return (self.weights_planned + self.activations_planned) / (self.weights + self.activations)


def compare(network: str, scale: Scale, device: torch.device, *, lora: bool) -> Iterator[Compared]:
    """Every call with each of its numbers of rows; with a LoRA and checkpoints, or in full and without."""
    gc.collect()  # of an earlier network
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    planned, real = (_policy(scale, where, lora=lora) for where in (torch.device("meta"), device))
    shapes, calls = (Calls(policy, policy.encode("a prompt"), policy.device) for policy in (planned, real))
    held = torch.cuda.memory_allocated(device) - before if device.type == "cuda" else _bytes(real)
    for call, numbers in ROWS.items():
        expected = measure_pass(getattr(shapes, call), device.type == "cuda")
        for rows in numbers:
            peak = peak_bytes(lambda call=call, rows=rows: getattr(calls, call)(rows), device)  # type: ignore[misc]
            yield Compared(network, call, rows, _bytes(planned), held, expected.bytes(rows), peak)


def _policy(scale: Scale, device: torch.device, *, lora: bool) -> RandomFlux:
    policy = RandomFlux(scale, device, compiled=False)
    if lora:
        with torch.device(device):
            policy.add_lora(LoraSettings())
        for weight in trainable(policy.network).values():  # on the meta device PEFT makes them in float32
            weight.data = weight.data.to(policy.precision)
        policy.checkpoint_gradients()
    return policy


def _bytes(policy: RandomFlux) -> float:
    return sum(weight.nbytes for part in (policy.network, policy.vae) for weight in part.parameters())


def main(
    out: Out = OUT,
    tiny: Annotated[bool, typer.Option("--tiny", help="Small networks, on whatever device there is.")] = False,
) -> None:
    """Compare, print a table, and write gpu_memory.json."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not tiny:
        raise typer.BadParameter("there is no GPU; --tiny runs anywhere", param_hint="--tiny")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    unit = "MB" if tiny else "GB"
    scale, found, path = TINY_SCALE if tiny else FULL_SCALE, [], report_path(out, "gpu_memory")
    networks = {
        "FLUX.1-dev, LoRA, checkpoints": (scale, True),
        "6 of its blocks, in full": (scale if tiny else replace(scale, network=FEW_BLOCKS), False),
    }
    table = Table("network", "call", "rows", title=f"{name}: {unit} at the peak, planned and allocated")
    for column in ("weights", "", "activations", "", "planned / allocated"):
        table.add_column(column, justify="right")
    for network, (own, lora) in networks.items():
        for one in compare(network, own, device, lora=lora):
            found.append({**asdict(one), "ratio": one.ratio})
            write_report(path, {"device": name, "calls": found})
            sizes = (one.weights_planned, one.weights, one.activations_planned, one.activations)
            table.add_row(
                network, one.call, str(one.rows), *(f"{size / UNITS[unit]:.3f}" for size in sizes), f"{one.ratio:.3f}"
            )
        table.add_section()
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
