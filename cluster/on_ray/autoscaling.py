"""How many rollout workers a run should have, from who waited for whom. Knows nothing of Ray."""

import math
from dataclasses import dataclass

SLOWDOWN_RATIO = 0.05
"""Maximum slowdown of an iteration compared with the maximum number of workers."""


@dataclass(frozen=True)
class IterationTiming:
    """How an iteration's workers were used."""

    workers: int
    tasks: int
    task_seconds: float
    """Mean seconds in which a worker samples a task, without the time that it waits for its parts to be scored."""
    seconds: float
    """The whole iteration."""
    waited: float
    """Seconds of it in which the learner had nothing to do because trees were still being sampled."""

    def predicted(self, workers: int) -> float:
        """Seconds of an iteration with so many workers.

        Each samples `ceil(tasks / workers)` tasks one after the other. What that saves shortens the iteration by no
        more than the learner has waited.
        """
        saved = self.task_seconds * (math.ceil(self.tasks / self.workers) - math.ceil(self.tasks / workers))
        return self.seconds - min(saved, self.waited)


def workers_wanted(observed: IterationTiming, minimum: int, maximum: int) -> int:
    """The fewest workers with which an iteration takes hardly longer than with `maximum`; at least `minimum`."""
    limit = (1 + SLOWDOWN_RATIO) * observed.predicted(maximum)
    return next((count for count in range(minimum, maximum) if observed.predicted(count) <= limit), maximum)
