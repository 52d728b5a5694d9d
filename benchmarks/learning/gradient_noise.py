"""How much the gradients of independent iterations agree: how large a step an iteration's rows can bear.

A recipe's iterations are made without moving the weights, each with other prompts and other noise. What their gradients
have in common is the signal, the rest is noise. The gradient noise scale of McCandlish et al. (arXiv 1812.06162) is in
units of iterations here: as many as must be averaged until the signal is as large as the noise.

    python -m branchgrpo.benchmarks.learning.gradient_noise shapes glyphs_dance_grpo --iterations 16

Overrides hold for all recipes.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ...cluster.run.folder import load_settings
from ...cluster.run.in_process import InProcessLoop
from ...cluster.run.prompt_order import training_and_held_out
from ...cluster.study.statistics import Estimate, mean
from ..support.report import OUT, Out, report_path, write_report

STILL = {
    "execution": "in_process",
    "evaluation.every": 0,
    "learner.passes": 1,
    "learner.updates_per_iteration": 1,
    "learner.zero_stage": 0,
    "learner.optimizer.gradient_clipping": 0,
    "learner.optimizer.weight_decay": 0,
    "learner.optimizer.learning_rate": 1e-30,
    "policy.precision": "float32",
}
"""Settings with which an iteration has one gradient, as it is, and leaves the weights where they are."""


@dataclass(frozen=True)
class Noise:
    """What the gradients of independent iterations have in common."""

    cosine: Estimate
    """Mean cosine of two iterations' gradients. Its interval is a jackknife's over iterations."""
    scale: float
    """Iterations whose mean gradient is half signal, half noise; infinite if they have nothing in common."""


def noise_of(gradients: Sequence[torch.Tensor]) -> Noise:
    """The noise of gradients, float [weights] each, three at least."""
    stacked = torch.stack([own.double() for own in gradients])
    products = (stacked @ stacked.T).numpy()
    everyone = np.arange(len(products))
    left_out = [_cosine(np.delete(np.delete(products, own, 0), own, 1)) for own in everyone]
    whole, count = _cosine(products), len(products)
    # Pseudovalues, whose mean and spread are those of the jackknife.
    cosine = mean([count * whole - (count - 1) * own for own in left_out])
    signal = _pairs(products)
    scale = (np.trace(products) / count - signal) / signal if signal > 0 else np.inf
    return Noise(Estimate(whole, whole + cosine.low - cosine.value, whole + cosine.high - cosine.value), float(scale))


def _pairs(products: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """Mean product of two different gradients: an unbiased estimate of the squared norm of what they share."""
    count = len(products)
    return float((products.sum() - np.trace(products)) / (count * (count - 1)))


def _cosine(products: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    norms = np.sqrt(np.diag(products))
    return _pairs(products / np.outer(norms, norms))


def gradients(loop: InProcessLoop, iterations: int, console: Console) -> tuple[list[torch.Tensor], int, float]:
    """The gradients of iterations, their forward passes, and the mean number of rows."""
    found: list[torch.Tensor] = []
    weights = [own for own in loop.policy.network.parameters() if own.requires_grad]

    def note(*_: object) -> None:
        zero = torch.zeros(1)
        found.append(torch.cat([zero.expand(own.numel()) if own.grad is None else own.grad.ravel() for own in weights]))

    loop.learner.engine.module.optimizer.register_step_pre_hook(note)
    numbers = range(1, iterations + 1)
    name = loop.settings.name
    shown = track(numbers, name, console=console, transient=True, disable=not console.is_terminal)
    reports = [loop.iterate(number) for number in shown]
    rows = np.mean([update.rows for report in reports for update in report.updates])
    return found, reports[0].forward_passes, float(rows)


def main(
    targets: Annotated[list[Path], typer.Argument(help="Recipes, or names of shipped ones.")],
    setting: Annotated[list[str] | None, typer.Option("--set", help="A setting to replace: key=value.")] = None,
    iterations: Annotated[int, typer.Option(min=3, help="Iterations of each recipe.")] = 16,
    out: Out = OUT,
) -> None:
    """Compare the gradients of independent iterations, recipe by recipe.

    Example: python -m branchgrpo.benchmarks.learning.gradient_noise glyphs_dance_grpo glyphs_nft --set seed=1
    """
    path, console = report_path(out, "gradient_noise"), Console()
    still = [f"{key}={value}" for key, value in STILL.items()]
    recipes = [load_settings(target, [*(setting or ()), *still]) for target in targets]
    table = Table("recipe", "passes", "rows", "cosine of two gradients", "iterations until signal is noise")
    report = {}
    for target, settings in zip(targets, recipes, strict=True):
        with closing(InProcessLoop(settings, training_and_held_out(settings)[0])) as loop:
            found, passes, rows = gradients(loop, iterations, console)
        noise = noise_of(found)
        table.add_row(target.stem, str(passes), f"{rows:.0f}", noise.cosine.text("{:.3f}".format), f"{noise.scale:.1f}")
        report[target.stem] = {
            "forward_passes": passes,
            "rows": rows,
            "iterations": iterations,
            "cosine": noise.cosine.value,
            "low": noise.cosine.low,
            "high": noise.cosine.high,
            "scale": noise.scale,
        }
    console.print(table)
    write_report(path, {"recipes": report})


if __name__ == "__main__":
    typer.run(main)
