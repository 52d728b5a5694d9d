"""How a run that has ended before its time can be continued, in words."""

from ...proto.errors import Diverged
from ...proto.settings import RunSettings
from .folder import RunFolder


def after_stop(folder: RunFolder) -> str:
    """The message of a stopped run: how to continue it."""
    if not folder.done:
        return "stopped before the first checkpoint"
    return f"stopped after iteration {folder.done} with a checkpoint; continue with --resume: {folder.command}"


def after_divergence(error: Diverged, folder: RunFolder, settings: RunSettings) -> str:
    """The advice for a run with numbers that aren't finite: how to continue it from the newest good checkpoint."""
    lower = f"learner.optimizer.learning_rate={settings.learner.optimizer.learning_rate / 10:g}"
    if error.weights == 0:
        return "the weights are those that were loaded: is policy.precision enough for this model?"
    if not (done := folder.checkpoints()):
        return f"there is no checkpoint yet; start again with smaller steps, such as {lower}"
    whole = max((n for n in done if error.weights is None or n < error.weights), default=0)
    back = "" if whole == done[-1] else f" --iteration {whole}"
    told = f"the checkpoint of iteration {whole} is whole" if whole else "no checkpoint comes before these weights"
    return f"{told}; continue with smaller steps, such as: {folder.command}{back} {lower}"
