"""The log of a run's figures and pictures: JSON lines, TensorBoard, Weights & Biases."""

import os
import socket
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ...proto.settings import RunSettings
from ...proto.update_stats import reward_shares
from ...proto.usage import Usage
from ...proto.wav import is_wav, read_wav
from .evaluation import MADE_WITH
from .folder import RunFolder
from .loop import IterationReport
from .wandb_log import WandbLog


class RunLog:
    """Writes every iteration to all places that the settings name."""

    def __init__(self, folder: RunFolder, settings: RunSettings, first_iteration: int) -> None:
        """Raises InputError if Weights & Biases refuses the run."""
        self._folder = folder
        self._tensorboard: _EventFiles | None = None
        self._wandb: WandbLog | None = None
        if settings.logging.tensorboard:
            self._tensorboard = _EventFiles(folder.path / "tensorboard", first_iteration)
        if settings.logging.wandb_project:
            self._wandb = WandbLog(folder.path, settings)
            self._wandb.catch_up(_logged_rows(folder))

    @property
    def shows_pictures(self) -> bool:
        """Whether pictures go anywhere."""
        return self._tensorboard is not None or self._wandb is not None

    def iteration(self, line: Mapping[str, Any]) -> None:
        """Log the figures of a finished iteration (`iteration_line`)."""
        # First what may be told twice, should the disk be full and this be called again.
        self._scalars(line["iteration"], _iteration_scalars(line))
        self._folder.append("metrics", line)

    def evaluation(self, iteration: int, means: dict[str, float]) -> None:
        """Log the means of an evaluation; evaluations.jsonl isn't written here."""
        self._scalars(iteration, _evaluation_scalars(means))

    def pictures(self, iteration: int, pictures: Mapping[str, bytes]) -> None:
        """Log pictures as PNG, clips as GIF and sounds as WAV, by name; their files aren't written here."""
        if self._tensorboard:
            self._tensorboard.add_pictures(iteration, pictures)
        if self._wandb:
            self._wandb.add(iteration, pictures=pictures)

    def complete(self, iteration: int) -> None:
        """Everything about an iteration has been logged. Weights & Biases takes it whole, once."""
        if self._wandb:
            self._wandb.complete(iteration)

    def close(self, *, goes_on: bool = False) -> None:
        """Close the event file, and end the run at Weights & Biases.

        If the run `goes_on` in this process, that stays open for its next log: no recovery waits for an upload.
        """
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb and not goes_on:
            self._wandb.close()

    def _scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        if self._tensorboard:
            self._tensorboard.add(iteration, values)
        if self._wandb:
            self._wandb.add(iteration, values)


class _EventFiles:
    """TensorBoard's event files; a new one is begun after one that could not be written to.

    TensorBoard reads files in the order of their names, and begins anew at each start that a file tells of. Its own
    writer names files by the second, so two files of one second may be read in the wrong order; these are named by the
    nanosecond.
    """

    def __init__(self, folder: Path, first_iteration: int) -> None:
        """Figures of `first_iteration` and later that an earlier part of the run has written are hidden."""
        self._folder = folder
        self._file: RecordWriter | None = None
        self._write(first_iteration, session_log=SessionLog(status=SessionLog.START))

    def add(self, iteration: int, values: Mapping[str, float]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(iteration, summary=Summary(value=scalars))

    def add_pictures(self, iteration: int, pictures: Mapping[str, bytes]) -> None:
        values = []
        for name, data in pictures.items():
            if is_wav(BytesIO(data)):
                values.append(Summary.Value(tag=name, audio=_audio(data)))
                continue
            with Image.open(BytesIO(data)) as opened:
                width, height = opened.size
            image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=data)
            values.append(Summary.Value(tag=name, image=image))
        self._write(iteration, summary=Summary(value=values))

    def close(self) -> None:
        file, self._file = self._file, None
        if file:
            file.close()

    def _write(self, iteration: int, **content: Any) -> None:
        try:
            self._file = self._file or self._begun()
            self._file.write(Event(wall_time=time.time(), step=iteration, **content).SerializeToString())
            self._file.flush()
        except OSError:
            # What was written may end within a record: nothing can follow it.
            with suppress(OSError):
                self.close()
            raise

    def _begun(self) -> RecordWriter:
        self._folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        file = RecordWriter((self._folder / name).open("wb"))
        file.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        return file


def _audio(data: bytes) -> Summary.Audio:
    media = read_wav(BytesIO(data))
    assert media.sound is not None
    return Summary.Audio(
        sample_rate=media.sample_rate,
        num_channels=media.sound.shape[1],
        length_frames=media.sound.shape[2],
        encoded_audio_string=data,
        content_type="audio/wav",
    )


def iteration_line(report: IterationReport, seconds: float) -> dict[str, Any]:
    """The figures of an iteration that has just ended and took `seconds` in all, as nested plain data."""
    return {
        "iteration": report.iteration,
        "started": time.time() - seconds,
        "seconds": seconds,
        "phase_seconds": report.seconds,
        "busy_seconds": {phase: usage.seconds for phase, usage in report.usage.items()},
        "cpu_seconds": {phase: usage.cpu_seconds for phase, usage in report.usage.items()},
        "gpu_seconds": {
            phase: usage.gpu_seconds for phase, usage in report.usage.items() if usage.gpu_seconds is not None
        },
        "flops": report.flops,
        "utilisation": report.utilisation,
        "reward_models": {model: _of_model(report, model, usage) for model, usage in report.reward_usage.items()},
        "rewards": {
            name: {label: float(getattr(values, label)()) for label in ("mean", "std", "min", "max")}
            for name, values in report.rewards.items()
        },
        "reward_shares": reward_shares(report.updates),
        **({} if report.diversity is None else {"diversity": report.diversity}),
        "leaves": int(next(iter(report.rewards.values())).size),
        "left_out_trees": report.left_out,
        "forward_passes": report.forward_passes,
        "scoring_hidden": report.scoring_hidden,
        "rows": sum(update.rows for update in report.updates),
        "edges": sum(update.edges for update in report.updates),
        "skipped_edges": sum(update.skipped_edges for update in report.updates),
        "pruned_edges": sum(update.pruned_edges for update in report.updates),
        "reference_rows": sum(update.reference_rows for update in report.updates),
        "kl": float(np.mean([update.kl for update in report.updates])),
        "logprob_abs_diff": report.updates[0].logprob_abs_diff,
        "ratio_min": min(update.ratio_min for update in report.updates),
        "ratio_max": max(update.ratio_max for update in report.updates),
        "clip_fraction": float(np.mean([update.clip_fraction for update in report.updates])),
        "gradient_norm": float(np.mean([update.gradient_norm for update in report.updates])),
        "learning_rate": report.updates[-1].learning_rate,
    }


def _of_model(report: IterationReport, model: str, usage: Usage) -> dict[str, float]:
    """What a reward model has spent and computed, as far as it is known."""
    figures = {
        "busy_seconds": usage.seconds,
        "cpu_seconds": usage.cpu_seconds,
        "gpu_seconds": usage.gpu_seconds,
        "flops": report.reward_flops.get(model),
        "utilisation": report.reward_utilisation.get(model),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _logged_rows(folder: RunFolder) -> dict[int, dict[str, float]]:
    """The scalars of every iteration that the folder holds, ascending."""
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for line in folder.lines("metrics"):
        rows[line["iteration"]].update(_iteration_scalars(line))
    for line in folder.lines("evaluations"):
        means = {name: value for name, value in line.items() if name not in ("iteration", MADE_WITH)}
        rows[line["iteration"]].update(_evaluation_scalars(means))
    return dict(sorted(rows.items()))


def _iteration_scalars(line: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in _flat(line).items() if key not in ("iteration", "started")}


def _evaluation_scalars(means: Mapping[str, float]) -> dict[str, float]:
    return {f"evaluation/{name}": value for name, value in means.items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = value
    return flat
