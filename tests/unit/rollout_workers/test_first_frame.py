"""Wan 2.2 5B: one folder draws clips from texts, and from pictures."""

import json
from pathlib import Path

import pytest
import torch
from branchgrpo.cluster.commands.publish import usage
from branchgrpo.proto.errors import InputError
from branchgrpo.rollout_workers.policies.base import collate
from branchgrpo.rollout_workers.policies.load import check_pictures, load_policy
from families import with_pictures
from plain_diffusers import policy_of
from support import Settings


def test_a_folder_of_the_pipeline_from_texts_takes_a_picture_too(run_settings: Settings, tmp_path: Path) -> None:
    settings = policy_of("Wan 2.2 5B", tmp_path / "pipeline")
    run = run_settings({"policy": settings.model_dump(), "prompts.picture_column": "image"})
    for count in (0, 1):
        check_pictures(run, with_pictures(("123",), count))
    with pytest.raises(InputError, match="a WanPipeline takes 0 to 1 pictures with a prompt"):
        check_pictures(run, with_pictures(("123",), 2))

    policy = load_policy(settings)
    code = usage(run, policy)  # type: ignore[arg-type]
    assert "WanImageToVideoPipeline.from_pretrained(" in code
    assert "image=picture" in code
    states = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(1))
    sigmas, rows = torch.tensor([0.9, 0.3]), [policy.encode(with_pictures(("123",), 1)[0])] * 2
    velocity = policy.velocity(states, sigmas, collate(rows))
    first = (states - sigmas.reshape(-1, 1, 1, 1, 1) * velocity)[:, :, :1]
    torch.testing.assert_close(first, collate(rows)["first_frame"])  # wherever it is, it ends at the picture

    index = tmp_path / "pipeline" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "WanImageToVideoPipeline"}))
    assert torch.equal(load_policy(settings).velocity(states, sigmas, collate(rows)), velocity)
