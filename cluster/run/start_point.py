"""The weights that a run starts from (`policy.start_from`): the checkpoint of another run is found once, and
recorded.
"""

from pathlib import Path

from ...proto.checkpoint_files import EMA, LEARNER, WEIGHTS
from ...proto.errors import InputError
from ...proto.settings import RunSettings, StartSettings
from .folder import RunFolder


def find_start(settings: RunSettings) -> RunSettings:
    """Settings in which `policy.start_from` names a checkpoint where it named a run.

    Processes elsewhere, and later commands, find the same one in them. Raises InputError for a path that isn't there, a
    run without such a checkpoint, or a choice among checkpoints where there are none.
    """
    start = settings.policy.start_from
    return _with(settings, _found(start)) if start else settings


def same_start(settings: RunSettings, run: Path) -> RunSettings:
    """Settings with the start of the run in the folder `run`, if they name the same one.

    What was the newest checkpoint of another run may not be any more, or be gone.
    """
    start = settings.policy.start_from
    own = RunFolder(run).settings.policy.start_from if (run / "recipe.yaml").is_file() else None
    if start and own and _may_mean(start, Path(own.path)):
        return _with(settings, start.model_copy(update={"path": own.path, "iteration": own.iteration}))
    return find_start(settings)


def without_start(settings: RunSettings) -> RunSettings:
    """Settings for a run of which there is a checkpoint: one of all weights stands for itself, and its start, which may
    be gone by now, isn't needed, unless it is the reference of the KL term."""
    needed = settings.learner.lora or settings.learner.kl_weight
    return settings if needed else _with(settings, None)


def _found(start: StartSettings) -> StartSettings:
    path = Path(start.path).resolve()
    told = f"policy.start_from.path is '{start.path}'"
    if not path.exists():
        raise InputError(f"{told}, which isn't there")
    if not (path / "recipe.yaml").is_file():
        if start.iteration != "newest":
            raise InputError(
                f"{told}, which is no folder of a run; policy.start_from.iteration chooses among its checkpoints"
            )
        if start.ema and not (path / LEARNER).is_file():
            raise InputError(f"{told}, which is no run and no checkpoint; policy.start_from.ema is of these")
        return start.model_copy(update={"path": str(path)})
    folder = RunFolder.open(path)
    names = [EMA if start.ema else WEIGHTS]
    try:
        iteration = folder.find_checkpoint(start.iteration, names, _refuse)
    except InputError as error:
        raise InputError(f"{told}: {error}") from error
    return start.model_copy(update={"path": str(folder.checkpoint(iteration)), "iteration": "newest"})


def _refuse(checkpoint: Path, why: str) -> None:
    raise InputError(f"its newest checkpoint, {checkpoint}, is damaged ({why}); name another iteration")


def _may_mean(start: StartSettings, own: Path) -> bool:
    """Whether `start` names `own`, or the run of whose checkpoints it may have been the newest or the best."""
    path = Path(start.path).resolve()
    if isinstance(start.iteration, int):
        return own == RunFolder(path).checkpoint(start.iteration)
    return own in (path, path / "checkpoints" / own.name)


def _with(settings: RunSettings, start: StartSettings | None) -> RunSettings:
    return settings.model_copy(update={"policy": settings.policy.model_copy(update={"start_from": start})})
