"""Names of layers in files for other tools: diffusers' readers of these tools' files know them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.rollout_workers.policies.lora_formats import save_as
from branchgrpo.rollout_workers.policies.lora_names import SD3, own_name, sdxl_name
from branchgrpo.rollout_workers.policies.start import ADAPTER, adapted_layers, delta
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders import lora_conversion_utils as conversion
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from peft import LoraConfig

KOHYA = {
    "Chroma": (ChromaTransformer2DModel, conversion._convert_kohya_flux_lora_to_diffusers),
    "FLUX.1": (FluxTransformer2DModel, conversion._convert_kohya_flux_lora_to_diffusers),
    "FLUX.2": (Flux2Transformer2DModel, conversion._convert_kohya_flux2_lora_to_diffusers),
    "Z-Image": (ZImageTransformer2DModel, conversion._convert_non_diffusers_z_image_lora_to_diffusers),
}
"""Networks, and diffusers' converters of the names that kohya's tools give their layers."""
BLOCKS = ("transformer_blocks.", "single_transformer_blocks.", "layers.", "noise_refiner.", "context_refiner.")


def with_lora(network: Any, modules: list[str]) -> Any:
    """The network with random numbers in a LoRA whose alpha is not its rank; its other weights may have no memory."""
    network.add_adapter(LoraConfig(r=4, lora_alpha=12, target_modules=modules))
    torch.manual_seed(1)
    shapes = {name: value.shape for name, value in network.named_parameters() if "lora_" in name}
    drawn = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    network.load_state_dict(drawn, strict=False, assign=True)
    return network


def layers_in_blocks(network: Any) -> list[str]:
    layers = (name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear))
    return [name for name in layers if name.startswith(BLOCKS)]


@pytest.mark.parametrize("family", KOHYA)
@pytest.mark.parametrize("modules", [["to_q", "to_k", "to_v", "to_out.0"], ["to_v"], None])
def test_diffusers_knows_the_names_of_kohyas_tools(family: str, modules: list[str] | None, tmp_path: Path) -> None:
    """And takes their fused layers apart. At the published width, which its converter of FLUX.1 expects."""
    kind, convert = KOHYA[family]
    numbers = ("n_layers", "n_refiner_layers") if family == "Z-Image" else ("num_layers", "num_single_layers")
    with torch.device("meta"):
        network = kind(**dict.fromkeys(numbers, 1))
    with_lora(network, modules or layers_in_blocks(network))
    save_as(network, tmp_path / "mine.safetensors", "kohya")
    known = convert(safetensors.torch.load_file(tmp_path / "mine.safetensors"))
    adapted = {name.removesuffix(".weight"): layer for name, layer in adapted_layers(network)}
    assert adapted
    for path in {key.removeprefix("transformer.").rsplit(".", 2)[0] for key in known} | adapted.keys():
        down, up = (known[f"transformer.{path}.{factor}.weight"] for factor in ("lora_A", "lora_B"))
        inputs = torch.randn(2, down.shape[1], dtype=torch.float64)
        changes = inputs @ down.T @ up.T
        if path in adapted:
            expected = 3 * adapted[path].lora_B[ADAPTER](adapted[path].lora_A[ADAPTER](inputs))
            torch.testing.assert_close(changes, expected, rtol=0, atol=1e-9)
        else:
            assert not changes.any()


class Checkpoint(dict[str, torch.Tensor]):
    """Weights, where all others are zeros."""

    def pop(self, name: str, *_: Any) -> torch.Tensor:  # type: ignore[override]
        return super().pop(name, torch.zeros(6))


def test_diffusers_knows_kohyas_names_of_sd3(tmp_path: Path) -> None:
    """It reads no LoRA with them, but a whole model, whose weights are here the changes."""
    network = SD3Transformer2DModel(
        sample_size=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=6,
        caption_projection_dim=8,
        pooled_projection_dim=6,
        pos_embed_max_size=4,
        dual_attention_layers=(0,),
    )
    with_lora(network, [name for name in layers_in_blocks(network) if "norm1_context" not in name])
    save_as(network, tmp_path / "mine.safetensors", "kohya")
    changes = Checkpoint({"context_embedder.weight": torch.zeros(8, 6)})
    tensors = safetensors.torch.load_file(tmp_path / "mine.safetensors")
    for layer in (name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha")):
        down, up = tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"]
        own = layer.removeprefix("lora_unet_").replace("_", ".")
        for word in ("joint_blocks", "x_block", "context_block", "adaLN_modulation"):
            own = own.replace(word.replace("_", "."), word)
        changes[f"{own}.weight"] = up @ down * tensors[f"{layer}.alpha"] / len(down)
    known = convert_sd3_transformer_checkpoint_to_diffusers(changes)
    assert not changes
    for name, adapted in adapted_layers(network):
        torch.testing.assert_close(known[name].float(), delta(adapted), msg=name)


@pytest.mark.parametrize(
    ("diffusers", "stability"),
    {
        "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_out.0": (
            "input_blocks.4.1.transformer_blocks.1.attn1.to_out.0"
        ),
        "down_blocks.2.attentions.1.proj_in": "input_blocks.8.1.proj_in",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "down_blocks.0.resnets.1.time_emb_proj": "input_blocks.2.0.emb_layers.1",
        "mid_block.attentions.0.transformer_blocks.9.ff.net.2": "middle_block.1.transformer_blocks.9.ff.net.2",
        "mid_block.resnets.1.conv1": "middle_block.2.in_layers.2",
        "up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_k": "output_blocks.2.1.transformer_blocks.0.attn2.to_k",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.2.resnets.0.conv_shortcut": "output_blocks.6.0.skip_connection",
    }.items(),
)
def test_layers_of_sdxl_have_stabilitys_names(diffusers: str, stability: str) -> None:
    published = SimpleNamespace(
        layers_per_block=2, up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]
    )
    assert sdxl_name(diffusers, published) == stability


def test_a_layer_without_a_name_elsewhere_is_refused() -> None:
    with pytest.raises(InputError, match="has 'conv_in', for which only --format diffusers has a name"):
        sdxl_name("conv_in", SimpleNamespace(layers_per_block=2))
    for path in ("proj_out", "transformer_blocks.0.norm1_context.linear"):
        with pytest.raises(InputError, match=f"has '{path}', for which only --format diffusers has a name"):
            own_name(path, [SD3])
