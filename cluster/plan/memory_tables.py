"""The memory of a run's processes as tables in the terminal."""

import json
from collections.abc import Callable, Mapping

from rich.table import Table

from ...proto.settings import RunSettings
from .fit import Changes, largest_rows, remedies, room
from .gpus import Gpu
from .memory import Memory

LINES: dict[str, Callable[[Memory], float]] = {
    "weights": lambda memory: memory.weights,
    "gradients": lambda memory: memory.gradients,
    "optimizer states": lambda memory: memory.optimizer,
    "buffers, states of trees": lambda memory: memory.buffers,
    "activations": lambda memory: memory.activations,
    "peak on the device": lambda memory: memory.peak,
    "text encoders, on the host when not in use": lambda memory: memory.encoders,
    "all else on the host": lambda memory: memory.host,
}
UNITS = {"GB": 1e9, "MB": 1e6}


def memory_table(memories: Mapping[str, Memory], gpu: float | None = None) -> Table:
    """Each process' memory by what holds it, and what a GPU with so many bytes has for it, if any reserves one."""
    unit = _unit(memories)
    table = Table(f"{unit} of a process", title_justify="left")
    for process in memories:
        table.add_column(process, justify="right")
    for line, size in LINES.items():
        table.add_row(line, *(f"{size(memory) / UNITS[unit]:.2f}" for memory in memories.values()))
    if gpu and on_gpus(memories):
        rooms = (f"{room(memory, gpu) / UNITS[unit]:.2f}" if memory.gpus else "" for memory in memories.values())
        table.add_row("its GPU has", *rooms)
    return table


def rows_table(memories: Mapping[str, Memory], gpu: float | None = None) -> Table:
    """The activations of each number of rows, and the largest number that fits a GPU with so many bytes, if any process
    reserves one."""
    unit, sized = _unit(memories), gpu and on_gpus(memories)
    table = Table("activations")
    for column in ("rows", unit, f"{unit} a row", *(["at most"] if sized else [])):
        table.add_column(column, justify="right")
    for memory in memories.values():
        most = largest_rows(memory, gpu) if gpu and memory.gpus else {}
        for setting, phase in memory.phases.items():
            sizes = (f"{size / UNITS[unit]:.2f}" for size in (phase.bytes, phase.taken.each))
            table.add_row(setting, str(phase.rows), *sizes, *([f"{most[setting]:,}"] if most else []))
    return table


def remedy_line(settings: RunSettings, changes: Changes | None, gpu: Gpu) -> str:
    """What makes a run fit, as overrides of the command line. Where a LoRA does, also what does without one."""
    if changes is None:
        return f"It doesn't fit a GPU {gpu.name}, whatever is changed"
    line = f"It fits a GPU {gpu.name} with: {_overrides(changes)}"
    if "learner.lora" in changes and (whole := remedies(settings, gpu.memory, lora=False)) is not None:
        line += f"; trained in full, with: {_overrides(whole)}"
    return line


def _overrides(changes: Changes) -> str:
    return " ".join(f"{name}={json.dumps(value)}" for name, value in changes.items())


def on_gpus(memories: Mapping[str, Memory]) -> bool:
    """Whether any process reserves a GPU, or a part of one."""
    return any(memory.gpus for memory in memories.values())


def _unit(memories: Mapping[str, Memory]) -> str:
    return "GB" if max(memory.peak for memory in memories.values()) > UNITS["GB"] else "MB"
