"""When an iteration's phases went on, and how far they overlapped."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

Span = tuple[float, float]


@dataclass
class Timeline:
    """Spans of time, by phase, in Unix seconds; spans of a phase may overlap."""

    spans: dict[str, list[Span]] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note the time spent inside as a span of phase `name`."""
        start = time.time()
        try:
            yield
        finally:
            self.spans.setdefault(name, []).append((start, time.time()))

    def seconds(self, name: str) -> float:
        """Seconds during which the phase went on."""
        return length(self.spans.get(name, []))

    def hidden(self, name: str, behind: str) -> float:
        """Share of phase `name` during which phase `behind` went on too; 0 for a phase that never was."""
        total, other = self.seconds(name), self.seconds(behind)
        either = length([*self.spans.get(name, []), *self.spans.get(behind, [])])
        return (total + other - either) / total if total else 0.0


def length(spans: Sequence[Span]) -> float:
    """Seconds covered by at least one span."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
