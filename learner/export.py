"""What was trained, in diffusers' own format."""

from pathlib import Path

from ..proto.files import whole
from ..rollout_workers.policies.base import Policy


def export(policy: Policy, folder: Path) -> Path:
    """Write a transformer folder or a LoRA file into `folder`, which is replaced as a whole. Returns what to load."""
    with whole(folder) as temporary:
        temporary.mkdir()
        saved = policy.save(temporary).relative_to(temporary)
    return folder / saved
