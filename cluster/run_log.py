"""Where an iteration's figures go: JSON lines, TensorBoard, Weights & Biases."""

import time
from typing import Any

import numpy as np

from ..proto.settings import RunSettings
from .loop import IterationReport
from .run_folder import RunFolder


class RunLog:
    """Writes every iteration to all places that the settings name."""

    def __init__(self, folder: RunFolder, settings: RunSettings, first_iteration: int) -> None:
        self._folder = folder
        self._tensorboard = self._wandb = None
        if settings.logging.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder.path / "tensorboard"), purge_step=first_iteration)
        if settings.logging.wandb_project:
            import wandb  # type: ignore[import-not-found,unused-ignore]

            self._wandb = wandb.init(
                project=settings.logging.wandb_project,
                name=settings.name,
                dir=str(folder.path),
                config=settings.model_dump(mode="json"),
            )

    def iteration(self, report: IterationReport, seconds: float) -> None:
        """Log a finished iteration that took `seconds` in all."""
        line = iteration_line(report, seconds)
        self._folder.append("metrics", line)
        self._scalars(
            report.iteration, {key: value for key, value in _flat(line).items() if key not in ("iteration", "started")}
        )

    def evaluation(self, iteration: int, means: dict[str, float]) -> None:
        self._scalars(iteration, {f"evaluation/{name}": value for name, value in means.items()})

    def close(self) -> None:
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()

    def _scalars(self, iteration: int, values: dict[str, float]) -> None:
        if self._tensorboard:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, iteration)
            self._tensorboard.flush()
        if self._wandb:
            self._wandb.log(values, step=iteration)


def iteration_line(report: IterationReport, seconds: float) -> dict[str, Any]:
    """An iteration's figures as nested plain data."""
    return {
        "iteration": report.iteration,
        "started": time.time() - seconds,
        "seconds": seconds,
        "phase_seconds": report.seconds,
        "rewards": {
            name: {label: float(getattr(values, label)()) for label in ("mean", "std", "min", "max")}
            for name, values in report.rewards.items()
        },
        "leaves": int(next(iter(report.rewards.values())).size),
        "forward_passes": report.forward_passes,
        "scoring_hidden": report.scoring_hidden,
        "first_score": report.first_score,
        "rows": sum(update.rows for update in report.updates),
        "edges": sum(update.edges for update in report.updates),
        "skipped_edges": sum(update.skipped_edges for update in report.updates),
        "logprob_abs_diff": report.updates[0].logprob_abs_diff,
        "clip_fraction": float(np.mean([update.clip_fraction for update in report.updates])),
        "gradient_norm": float(np.mean([update.gradient_norm for update in report.updates])),
        "learning_rate": report.updates[-1].learning_rate,
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = value
    return flat
