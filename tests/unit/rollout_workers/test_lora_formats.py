"""LoRA files for other tools, read as those read them, against the weights that diffusers merges."""

from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.settings import LoraSettings, PolicySettings
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.policies.lora_formats import fused, save_lora
from branchgrpo.rollout_workers.policies.start import ADAPTER, delta
from diffusers.loaders import lora_conversion_utils as conversion
from families import networks
from peft import LoraConfig, inject_adapter_in_model
from plain_diffusers import plain, policy_of

UNETS = ["SD1.5", "SDXL"]
AS_IN_DIFFUSERS = ["Chroma", "FLUX.1-dev", "FLUX.2 klein", "SD3.5", "Z-Image"]
"""Families whose layers ComfyUI knows by diffusers' paths."""
NOT_LOADED = ["Chroma", "FLUX.1-dev", "SD3.5"]
"""Families of which diffusers reads kohya's names only in networks of the published width, or not at all."""
CONVERTERS = {
    "LTX-2": conversion._convert_non_diffusers_ltx2_lora_to_diffusers,
    "LTX-2.5": conversion._convert_non_diffusers_ltx2_lora_to_diffusers,
    "HunyuanVideo 1.5": conversion._convert_hunyuan_video_lora_to_diffusers,
}
FAMILIES = [*UNETS, *AS_IN_DIFFUSERS, "Qwen-Image", "Wan 2.1", "Wan 2.2 14B", "LTX-2", "LTX-2.5", "HunyuanVideo 1.5"]


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """A family's name, and its policy with a LoRA whose alpha is not its rank."""
    settings = policy_of(request.param, tmp_path_factory.mktemp("family") / "pipeline")
    policy: Any = load_policy(settings)
    policy.add_lora(LoraSettings(rank=2, alpha=6))
    torch.manual_seed(1)
    for name, parameter in policy.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return request.param, policy


def merged(network: Any) -> dict[str, torch.Tensor]:
    """The weights with the LoRA in them, by the names without it."""
    whole = deepcopy(network)
    whole.fuse_lora()
    state = whole.state_dict().items()
    return {name.replace(".base_layer", ""): value for name, value in state if "lora_" not in name}


def read(file: Path) -> dict[str, torch.Tensor]:
    """What ComfyUI and kohya's tools add to each layer: up @ down * alpha / rank, and alpha = rank without a tensor."""
    tensors, changes = safetensors.torch.load_file(file), {}
    for down, up in (("lora_down", "lora_up"), ("lora_A", "lora_B")):
        for layer in (name.removesuffix(f".{down}.weight") for name in tensors if name.endswith(f".{down}.weight")):
            first, second = tensors[f"{layer}.{down}.weight"], tensors[f"{layer}.{up}.weight"]
            alpha = tensors[f"{layer}.alpha"].item() if f"{layer}.alpha" in tensors else len(first)
            changes[layer] = second.flatten(1) @ first.flatten(1) * (alpha / len(first))
    assert 3 * len(changes) == len(tensors)  # nothing else is there that they would leave out
    return changes


def named_as_in_diffusers(name: str, path: str) -> str:
    """The name under which ComfyUI looks for a layer that it knows by diffusers' path."""
    if name in UNETS:
        return f"lora_unet_{path.replace('.', '_')}"
    return f"diffusion_model.{path}" if name in ("Qwen-Image", "LTX-2", "LTX-2.5") else f"transformer.{path}"


def test_comfyui_applies_the_lora_at_full_strength(family: tuple[str, Any], tmp_path: Path) -> None:
    name, policy = family
    if "Wan" in name or name in ("SDXL", "HunyuanVideo 1.5"):
        pytest.skip("goes by names of its own")
    (file,) = save_lora(policy, tmp_path, "comfyui", "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]
    published, expected, changes = {}, merged(policy.network), read(file)
    for path, weight in policy.network.state_dict().items():
        if path.endswith(".base_layer.weight"):
            published[path.removesuffix(".base_layer.weight")] = weight
    assert {named_as_in_diffusers(name, path) for path in published} == changes.keys()
    for path, weight in published.items():
        changed = weight + changes[named_as_in_diffusers(name, path)].reshape(weight.shape)
        torch.testing.assert_close(changed, expected[f"{path}.weight"])
        assert not torch.allclose(changed, weight, atol=1e-2)


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_diffusers_reads_what_other_tools_are_given(
    family: tuple[str, Any], form: Literal["comfyui", "kohya"], tmp_path: Path
) -> None:
    """Its readers of files from sd-scripts, musubi-tuner and ComfyUI know the names that those give to layers."""
    name, policy = family
    if name in CONVERTERS:
        pytest.skip("read by diffusers without alpha alone, or not at all, see below")
    if form == "comfyui" and name in AS_IN_DIFFUSERS:
        pytest.skip("read by ComfyUI with diffusers' paths, see above")
    if name in NOT_LOADED:
        pytest.skip("read by diffusers' converters, see below")
    files = save_lora(policy, tmp_path, form, "mine")
    loaded = plain(policy.settings.pretrained)
    for number, file in enumerate(files):
        second = {"load_into_transformer_2": True} if number else {}
        loaded.load_lora_weights(tmp_path, weight_name=file.name, **second)
    for part, network in networks(loaded).items():
        expected = merged(getattr(policy.pipeline, part))
        for path, weight in merged(network).items():
            torch.testing.assert_close(weight, expected[path], msg=path)


def test_diffusers_knows_the_names_of_video_models(family: tuple[str, Any], tmp_path: Path) -> None:
    """Its converters give each layer's path back, with the two matrices that make the change."""
    name, policy = family
    if name not in CONVERTERS:
        pytest.skip("loaded whole, see above")
    (file,) = save_lora(policy, tmp_path, "comfyui", "mine")
    tensors = safetensors.torch.load_file(file)
    factors = {key.removesuffix(".alpha"): value for key, value in tensors.items() if key.endswith(".alpha")}
    scaled = {
        key: value * (factors[layer] / len(value) if key.endswith("lora_A.weight") else 1)
        for key, value in tensors.items()
        if (layer := key.rsplit(".", 2)[0]) in factors
    }
    known, expected = CONVERTERS[name](scaled), merged(policy.network)
    adapted = {key.removesuffix(".base_layer.weight") for key in policy.network.state_dict() if "base_layer.w" in key}
    assert {key.rsplit(".", 2)[0] for key in known} == {f"transformer.{path}" for path in adapted}
    for path in adapted:
        if "token_refiner" in path:
            continue  # of which diffusers takes the matrices apart in another way than those of the blocks
        change = known[f"transformer.{path}.lora_B.weight"] @ known[f"transformer.{path}.lora_A.weight"]
        published = policy.network.get_submodule(path).base_layer.weight
        torch.testing.assert_close(published + change, expected[f"{path}.weight"])
        assert change.abs().max() > 1e-2


def test_a_fused_layer_changes_as_its_parts_do() -> None:
    torch.manual_seed(1)
    ranks, rows = (2, 0, 3, 2), (5, 4, 4, 7)
    parts = [
        {"lora_A": torch.randn(rank, 6, dtype=torch.float64), "lora_B": torch.randn(own, rank, dtype=torch.float64)}
        for rank, own in zip(ranks, rows, strict=True)
    ]
    whole = fused([part if len(part["lora_A"]) else None for part in parts], rows)
    stacked = torch.cat([part["lora_B"] @ part["lora_A"] for part in parts])
    torch.testing.assert_close(whole["lora_B"] @ whole["lora_A"], stacked, rtol=0, atol=1e-14)
    assert len(whole["lora_A"]) == sum(ranks)


def test_kohya_keeps_apart_what_comfyui_fuses(tmp_path_factory: pytest.TempPathFactory) -> None:
    """In HunyuanVideo 1.5: queries, keys and values, also where some of them aren't trained."""
    folder = tmp_path_factory.mktemp("hunyuan")
    policy: Any = load_policy(policy_of("HunyuanVideo 1.5", folder / "pipeline"))
    modules = ["attn.to_q", "attn.to_v", "attn.to_out.0"]
    policy.add_lora(LoraSettings(rank=2, alpha=6, target_modules=modules))
    for name, parameter in policy.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    apart, together = (read(save_lora(policy, folder, form, form)[0]) for form in ("kohya", "comfyui"))
    block, own = "lora_unet_double_blocks_0_img_attn_", "diffusion_model.double_blocks.0.img_attn_"
    query, value = apart[f"{block}q"], apart[f"{block}v"]
    torch.testing.assert_close(together[f"{own}qkv"], torch.cat([query, torch.zeros_like(query), value]))
    torch.testing.assert_close(together[f"{own}proj"], apart[f"{block}proj"])
    prompts = "txt_in.individual_token_refiner.blocks.0.self_attn_qkv"
    torch.testing.assert_close(together[f"diffusion_model.{prompts}"], apart[f"lora_unet_{prompts.replace('.', '_')}"])
    trained = policy.network.context_embedder.token_refiner.refiner_blocks[0].attn
    query, value = delta(trained.to_q), delta(trained.to_v)
    torch.testing.assert_close(
        together[f"diffusion_model.{prompts}"], torch.cat([query, torch.zeros_like(query), value])
    )


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_sounds_have_no_other_format(form: Literal["comfyui", "kohya"], tmp_path: Path) -> None:
    policy: Any = load_policy(policy_of("Stable Audio", tmp_path / "pipeline"))
    policy.add_lora(LoraSettings(rank=2, alpha=6))
    with pytest.raises(InputError, match=f"--format is '{form}', which has no names for .* StableAudioDiTModel"):
        save_lora(policy, tmp_path, form, "mine")


def test_both_loras_of_wan_2_2_say_what_they_are(family: tuple[str, Any], tmp_path: Path) -> None:
    name, policy = family
    files = save_lora(policy, tmp_path, "comfyui", "mine")
    if name != "Wan 2.2 14B":
        assert [file.name for file in files] == ["mine.safetensors"]
        return
    assert [file.name for file in files] == ["mine_high_noise.safetensors", "mine_low_noise.safetensors"]
    folder = policy.save(tmp_path / "diffusers")
    ends = ("high_noise", "low_noise")
    assert sorted(file.name for file in folder.iterdir()) == [f"pytorch_lora_weights_{e}.safetensors" for e in ends]
    settings: dict[str, Any] = {**policy.settings.model_dump(), "start_from": str(folder)}
    started: Any = load_policy(PolicySettings(**settings))
    for part, network in networks(started.pipeline).items():
        expected = merged(getattr(policy.pipeline, part))
        for path, weight in network.state_dict().items():
            torch.testing.assert_close(weight, expected[path])


@pytest.mark.parametrize(
    "layer",
    [torch.nn.Conv3d(2, 4, 1), torch.nn.Conv3d(2, 4, (1, 2, 2)), torch.nn.Conv2d(2, 4, 3), torch.nn.Conv2d(2, 4, 1)],
    ids=["one voxel", "patch", "kernel", "one pixel"],
)
def test_what_an_adapter_adds_to_a_convolution_is_what_it_does(layer: torch.nn.Module) -> None:
    network = torch.nn.ModuleDict({"layer": layer}).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=["layer"]), network, ADAPTER)
    adapted: Any = network["layer"]
    torch.nn.init.normal_(adapted.lora_B[ADAPTER].weight)
    given = torch.randn(1, 2, *[5] * (layer.weight.ndim - 2))
    merged = deepcopy(layer)
    merged.weight.data += delta(adapted)
    torch.testing.assert_close(merged(given), adapted(given))
