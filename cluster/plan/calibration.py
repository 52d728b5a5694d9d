"""Which share of its peak a device reaches: as it was measured there and kept in a file, or assumed."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter

from ...proto.atomic_files import write_text
from ...proto.errors import InputError
from .gpus import Gpu, gpu_of_device

FORWARD, TRAINED, DECODE = "forward", "trained", "decode"
"""Kinds of work beside scoring, which goes by the name of the reward model."""
ONLY_FIELDS = ConfigDict(extra="forbid")
"""For what is read from a file: names that aren't known are mistakes."""


@dataclass(frozen=True)
class Pace:
    """How fast one kind of work goes."""

    utilisation: float | None
    """Share of the device's peak; None for work whose FLOPs aren't known."""
    item: float | None = None
    """Seconds of a row, picture or clip of the measured recipe, beside those of the call; None if assumed."""
    call: float = 0.0
    """Seconds of a call, however many it gets."""
    calls: Mapping[int, float] = field(default_factory=dict)
    """Items in a call -> its seconds, as measured; between them it isn't always a straight line."""
    __pydantic_config__ = ONLY_FIELDS

    def of(self, item: float) -> dict[int, float]:
        """The seconds of calls of another recipe, whose items take `item` seconds."""
        scale = item / self.item if self.item else 0.0
        return {count: self.call + scale * (seconds - self.call) for count, seconds in self.calls.items()}


@dataclass(frozen=True)
class Calibration:
    """Paces of a device. Utilisations hold for other recipes too; seconds only where no FLOPs are known."""

    device: str = ""
    """The device's name as torch gives it; on a CPU, the processor's."""
    peak: float = 0.0
    """FLOP/s that utilisations are shares of."""
    peak_source: str = ""
    precision: str = ""
    recipe: str = ""
    """What was measured."""
    paces: Mapping[str, Pace] = field(default_factory=dict)
    cores: int = 0
    """Number of processes that a processor has cores for; 0 for a GPU."""
    slowdown: float = 1.0
    """How many times as long work takes while all cores are busy."""
    __pydantic_config__ = ONLY_FIELDS

    def pace(self, work: str) -> Pace:
        """The pace of the network or the decoder, measured or assumed."""
        return self.paces[work] if work in self.paces else ASSUMED[work]

    def scoring(self, model: str, precision: str) -> Pace:
        """The pace of a reward model that works in this precision, measured or assumed."""
        return self.paces.get(model, ASSUMED_SCORING[precision])

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        write_text(file, FILE.dump_json(self, indent=1).decode() + "\n")


ASSUMED = {FORWARD: Pace(0.4), TRAINED: Pace(0.4), DECODE: Pace(0.2)}
ASSUMED_SCORING = {"bfloat16": Pace(0.2), "float32": Pace(0.5)}
"""By precision. Products in float32 without tensor cores come nearer to their peak."""
FILE = TypeAdapter(Calibration)


def load_calibration(file: Path) -> Calibration:
    """The calibration in a file. Raises InputError if it can't be read."""
    try:
        calibration = FILE.validate_json(file.read_bytes())
        if not calibration.paces:
            raise ValueError("nothing was measured")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it isn't what `branchgrpo calibrate` writes"
        raise InputError(f"calibration {file} can't be read: {reason}") from error
    return calibration


def calibration_file(device: str) -> Path:
    """The place of a device's calibration, in `~/.cache/branchgrpo/calibration` (or below `XDG_CACHE_HOME`)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "branchgrpo" / "calibration" / f"{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}.json"


def find_calibration(device: str) -> Calibration | None:
    """What was measured on a device of this name, if anything."""
    file = calibration_file(device)
    return load_calibration(file) if file.is_file() else None


def device_of(calibration: Calibration) -> Gpu:
    """The device that was measured: from the table of GPUs, or a processor core with its share of this machine's
    memory. What isn't known of its links is no limit."""
    if known := gpu_of_device(calibration.device):
        return known
    import psutil

    unknown = {"bandwidth": float("inf"), "peers": float("inf"), "host": float("inf")}
    memory = psutil.virtual_memory().total / (os.cpu_count() or 1)
    return Gpu(
        name="cpu",
        device=calibration.device,
        bfloat16=calibration.peak,
        float32=calibration.peak,
        memory=memory,
        **unknown,
        source=calibration.peak_source,
    )
