"""The parts of a task's trees, as the worker that samples them sends them."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from ...proto.profiling import ProfileOrder
from ...proto.remote_tree import PartHeader
from ...proto.tree import Task
from ..run.cuts import MAX_UNREAD_PARTS
from .internals import streaming
from .messages import PublishedWeights
from .streams import unfetched
from .worker_pool import Worker


class ArrivedPart(NamedTuple):
    """A part whose pictures and states lie elsewhere, in the order in which a worker sends its objects."""

    media: Any
    states: Any
    header: PartHeader


async def read_parts(
    worker: Worker, task: Task, weights: PublishedWeights, newest: int, order: ProfileOrder | None = None
) -> AsyncIterator[ArrivedPart]:
    """Have `worker` sample a task with `weights`, and read its parts; unread ones make it pause.

    `newest` is the version that the learner has reached; with `order`, the worker is profiled. The header is the last
    of a part's objects, so that a part that is handed on is whole. Raises what broke the stream off.
    """
    size = len(ArrivedPart._fields)
    sample = worker.actor.sample.options(**streaming((1 + size) * MAX_UNREAD_PARTS))
    stream = sample.remote(task, weights.at(worker.info.node_id), newest, order)
    async for announced in stream:
        await announced
        media, states, header = [reference async for reference in unfetched(stream, size)]
        yield ArrivedPart(media, states, await header)
