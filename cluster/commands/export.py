"""`branchgrpo export`: the trained model of a run, for diffusers and for other tools."""

from pathlib import Path
from typing import Literal

from ...learner.export import export as write
from ...proto.atomic_files import whole
from ...proto.errors import InputError
from ...proto.settings import RunSettings
from ...rollout_workers.policies.lora_formats import save_lora
from ...rollout_workers.policies.pipeline import PipelinePolicy
from ..run.folder import RunFolder, WhichCheckpoint
from ..run.trained import policy_with, trained_weights
from .publish import publish


def export(
    run: Path,
    out: Path,
    which: WhichCheckpoint,
    *,
    ema: bool = False,
    form: Literal["diffusers", "comfyui", "kohya"] = "diffusers",
    merge: bool = False,
) -> tuple[int, list[Path]]:
    """Write what a run has trained into the new folder `out`, with `merge` in a whole pipeline; returns the iteration,
    and what to load.

    Raises InputError for a checkpoint that isn't there, and for a `form` that the model can't have.
    """
    folder = RunFolder.open(run)
    if merge and form != "diffusers":
        raise InputError(f"--merge writes a pipeline of diffusers, and --format is '{form}'; give one of them")
    if form != "diffusers":
        _check_lora(folder.settings, form)
    number, weights = trained_weights(folder, which, ema=ema)
    policy = policy_with(folder.settings, weights)
    own = folder.settings.policy.adapter
    if merge:
        if not isinstance(policy, PipelinePolicy):
            raise InputError(f"policy.adapter is '{own}', your own; leave out --merge")
        publish(folder, policy, number, out, ema=ema)
        return number, [out]
    if form == "diffusers":
        return number, [write(policy, out)]
    if not isinstance(policy, PipelinePolicy):
        raise InputError(f"policy.adapter is '{own}', your own; leave out --format")
    with whole(out) as temporary:
        temporary.mkdir()
        files = save_lora(policy, temporary, form, folder.settings.name)
    return number, [out / file.name for file in files]


def _check_lora(settings: RunSettings, form: str) -> None:
    """Raises InputError if a run doesn't train a LoRA over the published weights."""
    start = settings.policy.start_from
    if settings.learner.lora is None:
        raise InputError(f"--format is '{form}', which is for LoRAs, and this run trains all weights; use diffusers")
    if start and start.lora != "train":
        raise InputError(
            f"--format is '{form}', and this run's LoRA is one over the weights of {start.path}, not the published "
            "ones; use diffusers, which merges both"
        )
