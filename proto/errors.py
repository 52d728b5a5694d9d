"""What is the user's to mend."""


class InputError(ValueError):
    """A setting, file or request that can't be used; the message names it, its value and what is accepted."""


class RunFailed(RuntimeError):
    """A run can't go on, through no mistake in its settings; the message says why."""
