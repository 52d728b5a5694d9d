"""What fits into the memory of a GPU: the largest batches, and what to change where a recipe's don't fit."""

from collections.abc import Iterator, Mapping
from typing import Any

from ...proto.errors import InputError
from ...proto.settings import RunSettings
from ...proto.settings_errors import changed_settings
from .memory import Memory, count_memory

UNUSABLE_BYTES = 2e9
"""Bytes of a GPU that tensors can't have: CUDA's context, workspaces of its libraries, gaps. Assumed."""
GIGA = 1e9
Changes = dict[str, Any]
"""Setting -> its new value."""


def room(memory: Memory, gpu: float) -> float:
    """Bytes that a process may take of a GPU with so many."""
    return memory.gpus * gpu - UNUSABLE_BYTES


def largest_rows(memory: Memory, gpu: float) -> dict[str, int]:
    """Setting -> the largest number of rows that fits; 0 if none does."""
    left = room(memory, gpu) - memory.held
    return {setting: phase.taken.rows(left) for setting, phase in memory.phases.items()}


def misfit(settings: RunSettings, gpu: float) -> str | None:
    """The reason for which a run doesn't fit GPUs with so many bytes; None if it does, as far as that is known.

    Raises InputError as `count_memory` does.
    """
    for process, memory in count_memory(settings).items():
        if memory.gpus and memory.peak > room(memory, gpu):
            setting, phase = max(memory.phases.items(), key=lambda item: item[1].bytes)
            when = f"with {setting}={phase.rows}" if phase.bytes > memory.encoders else "while prompts are encoded"
            return f"{process} needs {memory.peak / GIGA:.1f} GB {when}, and can have {room(memory, gpu) / GIGA:.1f} GB"
    return None


def remedies(settings: RunSettings, gpu: float, *, lora: bool = True) -> Changes | None:
    """The changes with which a run fits GPUs with so many bytes; None if there are none.

    In this order, as far as each helps: gradient checkpointing, a LoRA (unless it is ruled out), ZeRO stages,
    offloading, fewer rows.
    """
    made: Changes = {}
    left = _surplus(settings, gpu)
    for change in _changes(settings, lora):
        if left <= 0:
            return made
        changed = _changed(settings, {**made, **change})
        if changed is not None and (surplus := _surplus(changed, gpu)) < left:
            made, left = {**made, **change}, surplus
    if left <= 0:
        return made
    changed = _changed(settings, made) or settings
    for memory in count_memory(changed).values():
        for setting, most in largest_rows(memory, gpu).items() if memory.gpus else ():
            if most < memory.phases[setting].rows:
                made[setting] = most
    changed = _changed(settings, made)  # None where not a single row fits
    return made if changed and _surplus(changed, gpu) <= 0 else None


def _changes(settings: RunSettings, lora: bool) -> Iterator[Changes]:
    learner, ranks = settings.learner, settings.pools.learner.count
    yield {"learner.gradient_checkpointing": True}
    if lora and not learner.lora:
        yield {"learner.lora": {}}
    for stage in range(learner.zero_stage + 1, 4) if ranks > 1 else ():
        yield {"learner.zero_stage": stage}
    yield {"learner.offload.optimizer": True}
    yield {"learner.zero_stage": 3, "learner.offload.parameters": True}


def _changed(settings: RunSettings, changes: Mapping[str, Any]) -> RunSettings | None:
    """The settings with changes; None if they don't go together."""
    try:
        return changed_settings(settings, changes)
    except InputError:
        return None


def _surplus(settings: RunSettings, gpu: float) -> float:
    """Bytes by which all processes together exceed their GPUs."""
    memories = (memory for memory in count_memory(settings).values() if memory.gpus)
    return sum(max(memory.peak - room(memory, gpu), 0) for memory in memories)
