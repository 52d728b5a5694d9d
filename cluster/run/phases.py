"""When the phases of an iteration took place, and how far they overlapped."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ...proto.tracing import span as traced
from ...proto.usage import NOTHING, Stopwatch, Usage

Item = TypeVar("Item")
Span = list[float]
"""Start and end of a phase; a running phase ends at infinity."""


@dataclass
class Timeline:
    """Spans of time, by phase, in Unix seconds; spans of a phase may overlap."""

    spans: dict[str, list[Span]] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, **attributes: Any) -> Iterator[None]:
        """Note the time spent inside as a span of phase `name`, in the trace too, there with `attributes`."""
        span = [time.time(), math.inf]
        self.spans.setdefault(name, []).append(span)
        try:
            with traced(name, **attributes):
                yield
        finally:
            span[1] = time.time()

    def each(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, with the time that each takes to be made as a span of phase `name`."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def seconds(self, *names: str) -> float:
        """Seconds until now during which at least one of the phases was running."""
        return length([span for name in names for span in self.spans.get(name, [])], time.time())

    def hidden(self, name: str, behind: str) -> float:
        """Share of phase `name` during which phase `behind` was running too; 0 for a phase that never was."""
        total = self.seconds(name)
        return (total + self.seconds(behind) - self.seconds(name, behind)) / total if total else 0.0


@dataclass
class OwnTimeline(Timeline):
    """The phases of a process that goes through them one after the other, and what it spends on them."""

    usage: dict[str, Usage] = field(default_factory=dict)
    """Phase -> what it has cost."""

    @contextmanager
    def phase(self, name: str, **attributes: Any) -> Iterator[None]:
        watch = Stopwatch(name)
        with super().phase(name, **attributes):
            yield
        self.usage[name] = self.usage.get(name, NOTHING) + watch.lap()


def length(spans: Sequence[Span], now: float) -> float:
    """Seconds until `now` covered by at least one span."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        end = min(end, now)
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
