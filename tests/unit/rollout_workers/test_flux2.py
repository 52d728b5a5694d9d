"""Pictures that FLUX.2 starts from, which diffusers shrinks to a megapixel."""

from pathlib import Path
from typing import Any

import pytest
import torch
from branchgrpo.proto.pictures import Picture
from branchgrpo.proto.prompt import Prompt
from branchgrpo.rollout_workers.policies import flux2
from branchgrpo.rollout_workers.policies.base import collate
from branchgrpo.rollout_workers.policies.load import load_policy
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image
from plain_diffusers import policy_of, prompts_of

FAMILY = "FLUX.2 klein, pictures"


@pytest.mark.parametrize("size", [(1024, 1024), (1024, 1536), (1536, 640), (2048, 2048), (512, 768)])
def test_pictures_are_as_large_as_diffusers_takes_them(size: tuple[int, int], tmp_path: Path) -> None:
    height, width = size
    settings = policy_of(FAMILY, tmp_path / "pipeline").model_copy(update={"height": height, "width": width})
    policy: Any = load_policy(settings, network_only=True)
    theirs = Flux2ImageProcessor._resize_if_exceeds_area(Image.new("RGB", (width, height)))
    grid = policy.pipeline.vae_scale_factor * 2
    assert policy.picture_size == (theirs.height // grid * grid, theirs.width // grid * grid)


def test_a_smaller_picture_has_places_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The velocity depends on it, and is that of the state's own patches."""
    policy: Any = load_policy(policy_of(FAMILY, tmp_path / "pipeline"))
    monkeypatch.setattr(flux2, "MEGAPIXEL", policy.settings.height * policy.settings.width // 2)
    assert policy.picture_size != (policy.settings.height, policy.settings.width)
    (prompt, _), states = prompts_of(FAMILY), torch.randn(1, *policy.latent_shape)
    other = Prompt(str(prompt), pictures=[Picture(f"{i}", own.pixels() // 2) for i, own in enumerate(prompt.pictures)])
    one, two = (policy.velocity(states, torch.tensor([0.5]), collate([policy.encode(own)])) for own in (prompt, other))
    assert one.shape == states.shape
    assert not torch.allclose(one, two)
