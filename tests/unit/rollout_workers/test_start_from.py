"""`policy.start_from` against plain diffusers with the same weights: loaded, or merged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from branchgrpo.proto.schedule import ode_schedule
from branchgrpo.proto.settings import LoraSettings, PolicySettings, RolloutSettings
from branchgrpo.proto.tree import Task
from branchgrpo.rollout_workers.policies.decoded import Decoded
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from families import as_lora, networks, saved, trained_lora
from plain_diffusers import PROMPTS, STEPS, plain, starts, theirs

FAMILIES = ["FLUX.1-dev", "Qwen-Image", "SD1.5", "SD3.5", "Wan 2.1", "Wan 2.2 14B"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: saved(name, tmp_path_factory.mktemp("family") / "pipeline") for name in FAMILIES}


@pytest.fixture(params=FAMILIES, scope="module")
def settings(request: pytest.FixtureRequest, folders: dict[str, Path]) -> PolicySettings:
    return policy_settings(request.param, folders[request.param])


def policy_settings(family: str, folder: Path) -> PolicySettings:
    return PolicySettings(
        pretrained=str(folder),
        height=16,
        width=16,
        frames=5 if "Wan" in family else 1,
        guidance_scale=2.0,
        max_sequence_length=200 if "Qwen" in family else 6,
        precision="float32",
        device="cpu",
    )


def as_peft(pipeline: Any, folder: Path) -> Path:
    """In PEFT's form: a folder with its configuration, and names that begin with base_model.model."""
    trained_lora(pipeline)
    (network,) = networks(pipeline).values()
    network.peft_config["default"].save_pretrained(str(folder))
    weights = {f"base_model.model.{name}": v for name, v in peft.get_peft_model_state_dict(network).items()}
    safetensors.torch.save_file(weights, folder / "adapter_model.safetensors")
    return folder


def as_networks(pipeline: Any, folder: Path) -> Path:
    """As whole networks with other weights."""
    torch.manual_seed(2)
    for name, network in networks(pipeline).items():
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
        network.save_pretrained(folder / name)
    return folder


def drawn(policy: Any) -> np.ndarray:
    task = Task(iteration=0, trees=(0, 1), prompts=PROMPTS, schedule=ode_schedule(STEPS), seed=5)
    parts = list(RolloutWorker(policy, RolloutSettings()).sample(task))
    return np.asarray(Decoded.of(policy.decode(torch.stack([part.latents[-1] for part in parts]))).pictures)


@pytest.fixture(scope="module")
def published(settings: PolicySettings) -> np.ndarray:
    """What is drawn without a start."""
    return drawn(load_policy(settings))


@pytest.mark.parametrize("given", [as_lora, as_peft, as_networks])
def test_ode_from_a_start_equals_plain_diffusers_with_it(
    settings: PolicySettings, published: np.ndarray, given: Callable[[Any, Path], Path], tmp_path: Path
) -> None:
    pipeline = plain(settings.pretrained)
    if given is as_peft and len(networks(pipeline)) > 1:
        pytest.skip("PEFT's folders hold one network's LoRA")
    path = given(pipeline, tmp_path)
    policy = load_policy(PolicySettings(**{**settings.model_dump(), "start_from": str(path)}))
    ours = drawn(policy)
    np.testing.assert_allclose(ours, theirs(pipeline, settings, starts(policy, 5)), atol=1e-4)
    assert np.abs(ours - published).max() > 1e-3


@pytest.mark.parametrize("given", [as_lora, as_peft])
def test_a_lora_that_is_trained_further_is_the_adapters(
    settings: PolicySettings, given: Callable[[Any, Path], Path], tmp_path: Path
) -> None:
    pipeline = plain(settings.pretrained)
    if given is as_peft and len(networks(pipeline)) > 1:
        pytest.skip("PEFT's folders hold one network's LoRA")
    path = given(pipeline, tmp_path)
    start = {"path": str(path), "lora": "train"}
    policy = load_policy(PolicySettings(**{**settings.model_dump(), "start_from": start}))
    policy.add_lora(LoraSettings(rank=2, alpha=6))
    np.testing.assert_allclose(drawn(policy), theirs(pipeline, settings, starts(policy, 5)), atol=1e-4)
    saved_again = policy.save(tmp_path / "saved")
    files = sorted(saved_again.iterdir()) if saved_again.is_dir() else [saved_again]
    for number, (file, network) in enumerate(zip(files, networks(pipeline).values(), strict=True)):
        expected = peft.get_peft_model_state_dict(network)
        found = safetensors.torch.load_file(file)
        assert len(found) == len(expected), number
        assert all(torch.equal(value, expected[name.split(".", 1)[1]]) for name, value in found.items())
