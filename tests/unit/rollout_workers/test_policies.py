"""Policies: what is loaded, what is refused, what is trained."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.settings import LoraSettings, PolicySettings
from branchgrpo.rollout_workers.policies.base import Policy, load_weights, trainable
from branchgrpo.rollout_workers.policies.load import load_policy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": "/nowhere"}, r"policy\.pretrained is '/nowhere'; it must be a diffusers pipeline folder"),
        ({"height": 20}, r"policy\.height is 20; this model draws multiples of 8"),
    ],
)
def test_unusable_settings_are_refused(policy_settings: PolicySettings, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_policy(policy_settings.model_copy(update=changes))


def test_an_unknown_family_is_named(policy_settings: PolicySettings, tmp_path: Path) -> None:
    shutil.copytree(policy_settings.pretrained, tmp_path / "other")
    index = tmp_path / "other" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "OtherPipeline"}))
    with pytest.raises(InputError, match="of class OtherPipeline; supported pipelines are"):
        load_policy(policy_settings.model_copy(update={"pretrained": str(tmp_path / "other")}))


def test_pickled_weights_are_not_loaded(policy_settings: PolicySettings, tmp_path: Path) -> None:
    shutil.copytree(policy_settings.pretrained, tmp_path / "pickled")
    (weights,) = (tmp_path / "pickled" / "transformer").glob("*.safetensors")
    torch.save(safetensors.torch.load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(InputError, match=r"pickled/transformer/.*there is a \.bin.* Save them again as safetensors"):
        load_policy(policy_settings.model_copy(update={"pretrained": str(tmp_path / "pickled")}))


def test_sigmas_fall_from_one_to_zero(tiny_policy: Policy) -> None:
    sigmas = tiny_policy.sigmas(9)
    assert len(sigmas) == 10
    assert (sigmas[0], sigmas[-1]) == (1.0, 0.0)
    assert sigmas == sorted(sigmas, reverse=True)


def test_lora_trains_adapters_alone_and_starts_as_the_policy(tiny_policy: Policy) -> None:
    inputs = (
        torch.randn(2, *tiny_policy.latent_shape),
        torch.tensor([0.3, 0.9]),
        {name: value[None].repeat_interleave(2, 0) for name, value in tiny_policy.encode("12").items()},
    )
    with torch.no_grad():
        before = tiny_policy.velocity(*inputs)
        tiny_policy.add_lora(LoraSettings(rank=2, alpha=4))
        after = tiny_policy.velocity(*inputs)
    assert torch.equal(before, after)
    assert all("lora" in name for name in trainable(tiny_policy.network))
    assert trainable(tiny_policy.network)


def test_weights_that_do_not_fit_are_refused(tiny_policy: Policy) -> None:
    weights = {name: value.detach() for name, value in trainable(tiny_policy.network).items()}
    removed = sorted(weights)[0]
    del weights[removed]
    with pytest.raises(ValueError, match=removed):
        load_weights(tiny_policy.network, weights)
