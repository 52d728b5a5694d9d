"""The trained weights in diffusers' format."""

from pathlib import Path

from ..proto.atomic_files import whole
from ..rollout_workers.policies.base import Policy


def export(policy: Policy, folder: Path, *, replace: bool = False) -> Path:
    """Write a transformer folder or a LoRA file into the new folder `folder`. Returns what to load.

    Raises FileExistsError if the folder is there, unless it may be replaced as a whole.
    """
    with whole(folder, replace_folder=replace) as temporary:
        temporary.mkdir()
        saved = policy.save(temporary).relative_to(temporary)
    return folder / saved
