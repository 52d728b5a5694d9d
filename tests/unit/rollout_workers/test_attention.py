"""Attention kernels: those of a recipe are used, in rollouts and in the learner, and change nothing but speed."""

from pathlib import Path
from typing import Any

import families
import pytest
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.settings import PolicySettings
from branchgrpo.rollout_workers.policies.load import load_policy
from plain_diffusers import policy_of, prompts_of, two_iterations
from torch.overrides import TorchFunctionMode


class Kernels(TorchFunctionMode):
    """Counts the calls of PyTorch's attention, by whether only its plain formula may be used."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.calls.append(not torch.backends.cuda.flash_sdp_enabled())
        return func(*args, **(kwargs or {}))


def settings_of(name: str, folder: Path, **changes: Any) -> PolicySettings:
    return policy_of(name, families.saved(name, folder)).model_copy(update=changes)


def velocity(settings: PolicySettings, prompt: str) -> tuple[torch.Tensor, list[bool]]:
    policy = load_policy(settings)
    states = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(3))
    conditioning = {name: value[None].repeat_interleave(2, 0) for name, value in policy.encode(prompt).items()}
    with Kernels() as kernels, torch.no_grad():
        return policy.velocity(states, torch.tensor([0.9, 0.3]), conditioning), kernels.calls


@pytest.mark.parametrize("name", ["FLUX.1-dev", "Qwen-Image", "Qwen-Image 2.1", "Wan 2.2 14B", "Z-Image"])
def test_the_chosen_kernels_are_used_and_agree(name: str, tmp_path: Path) -> None:
    settings, prompt = settings_of(name, tmp_path), prompts_of(name)[0]
    expected, usual = velocity(settings, prompt)
    found, chosen = velocity(settings.model_copy(update={"attention": "_native_math"}), prompt)
    assert usual
    assert not any(usual)
    assert len(chosen) == len(usual)
    assert all(chosen)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_rollouts_and_learner_have_the_same_kernels(tmp_path: Path, run_settings: Any) -> None:
    settings = settings_of("FLUX.1-dev", tmp_path, attention="_native_math", precision="bfloat16")
    reports = two_iterations(settings, None, run_settings, prompts_of("FLUX.1-dev"))
    assert [report.updates[0].logprob_abs_diff for report in reports] == [0, 0]


def test_kernels_without_their_package_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"policy\.attention is 'flash', which can't be used here: .*flash-attn"):
        load_policy(settings_of("FLUX.1-dev", tmp_path, attention="flash"))


def test_kernels_that_cannot_train_here_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"policy\.attention is 'flex', which has no backward pass on a CPU"):
        load_policy(settings_of("FLUX.1-dev", tmp_path, attention="flex"))


def test_networks_with_fixed_kernels_refuse_others(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a UNet2DConditionModel doesn't let its attention be chosen"):
        load_policy(settings_of("SD1.5", tmp_path, attention="_native_math"))


def test_cudnn_is_not_chosen_by_itself(tmp_path: Path) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_policy(settings_of("FLUX.1-dev", tmp_path))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
