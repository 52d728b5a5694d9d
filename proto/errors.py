"""Errors that users can correct, and failures of a run."""


class InputError(ValueError):
    """A setting, file or request that can't be used; the message names it, its value and what is accepted."""


class RunFailed(RuntimeError):
    """A run can't continue, through no mistake in its settings; the message says why."""


class ProcessLost(RunFailed):
    """A process of a run died or hangs, or what it held is lost; the run can be set up again from a checkpoint."""


class Diverged(RunFailed):
    """A number of a run isn't finite: a state, a log-probability, a gradient or a weight. The message says where.

    Trying again would give the same, so nothing is; what was saved before is whole.
    """

    weights: int | None = None
    """Version of the weights that gave it, where it arose in sampling: the iteration after which they were saved."""


def brief(error: BaseException) -> str:
    """The first line of an error's message. Ray's messages continue with a paragraph that adds nothing."""
    return str(error).partition("\n")[0]
