"""What FLUX.1-dev and a ViT-H/14 reward model weigh and compute, counted on the real architectures without weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from peft import LoraConfig
from ray import cloudpickle
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from ...proto.remote_tree import PartHeader, states_of
from ...proto.settings import LoraSettings, RolloutSettings
from ...proto.tree import Conditioning, SampledPart, Task
from ...rollout_workers.policies.base import Network
from ...rollout_workers.policies.flux import FluxPolicy
from ...rollout_workers.worker import RolloutWorker

PIXELS = 720
TOKENS, CHANNELS = (PIXELS // 16) ** 2, 64
"""Number and width of the packed latents' tokens."""
TEXT_TOKENS, TEXT_CHANNELS, POOLED_CHANNELS = 512, 4096, 768
VAE_BLOCKS = [128, 256, 512, 512]
VIT_H = CLIPVisionConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=16,
    patch_size=14,
    image_size=224,
)
"""The image tower of HPS-v2.1 and PickScore."""


@dataclass(frozen=True)
class Counted:
    """FLOPs of one row, picture or state; bytes of what is published."""

    forward_flops: float
    decode_flops: float
    score_flops: float
    parameters: int
    full_bytes: int
    lora_parameters: int
    lora_bytes: int


def count() -> Counted:
    """Counted on the meta device: shapes without numbers."""
    with torch.device("meta"):
        network = FluxTransformer2DModel(guidance_embeds=True).to(torch.bfloat16)  # its defaults are FLUX.1's
        forward = flops(
            lambda: network(
                hidden_states=torch.empty(1, TOKENS, CHANNELS, dtype=torch.bfloat16),
                timestep=torch.empty(1, dtype=torch.bfloat16),
                guidance=torch.empty(1),
                pooled_projections=torch.empty(1, POOLED_CHANNELS, dtype=torch.bfloat16),
                encoder_hidden_states=torch.empty(1, TEXT_TOKENS, TEXT_CHANNELS, dtype=torch.bfloat16),
                txt_ids=torch.empty(TEXT_TOKENS, 3),
                img_ids=torch.empty(TOKENS, 3),
            )
        )
        whole = list(network.parameters())
        parameters, full_bytes = sum(p.numel() for p in whole), sum(p.nbytes for p in whole)
        network.requires_grad_(False)
        lora = LoraSettings()
        network.add_adapter(
            LoraConfig(r=lora.rank, target_modules=lora.target_modules or list(FluxPolicy.lora_modules))
        )
        adapters = [p for p in network.parameters() if p.requires_grad]
        vae = flux_autoencoder(VAE_BLOCKS, 16)
        decode = flops(lambda: vae.decode(torch.empty(1, 16, PIXELS // 8, PIXELS // 8)))
        tower = CLIPVisionModel(VIT_H)
        score = flops(lambda: tower(torch.empty(1, 3, VIT_H.image_size, VIT_H.image_size)))
    return Counted(
        forward_flops=forward,
        decode_flops=decode,
        score_flops=score,
        parameters=parameters,
        full_bytes=full_bytes,
        lora_parameters=sum(p.numel() for p in adapters),
        lora_bytes=sum(p.nbytes for p in adapters),
    )


def flux_autoencoder(blocks: list[int], latent_channels: int, norm_groups: int = 32) -> AutoencoderKL:
    """An autoencoder of the architecture of FLUX.1's, with random weights."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(blocks),
        up_block_types=["UpDecoderBlock2D"] * len(blocks),
        block_out_channels=blocks,
        layers_per_block=2,
        latent_channels=latent_channels,
        norm_num_groups=norm_groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )


def flops(call: Callable[[], object]) -> float:
    """Floating-point operations of a call; a multiplication with an addition counts as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return float(counter.get_total_flops())


class ShapedPolicy:
    """States, pictures and conditioning of FLUX.1-dev's shapes and types, with nothing in them."""

    device, network = torch.device("cpu"), torch.nn.Identity()
    latent_shape = (TOKENS, CHANNELS)

    def sigmas(self, steps: int) -> list[float]:
        return [1 - i / steps for i in range(steps + 1)]

    encoding = "shaped"

    def release_encoders(self) -> None:
        """There are none."""

    def encode(self, prompt: str) -> Conditioning:
        return {
            "prompt_embeds": torch.zeros(TEXT_TOKENS, TEXT_CHANNELS, dtype=torch.bfloat16),
            "pooled_prompt_embeds": torch.zeros(POOLED_CHANNELS, dtype=torch.bfloat16),
        }

    def velocity(
        self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> torch.Tensor:
        return -latents.float()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.full((len(latents), PIXELS, PIXELS, 3), 0.5)


def sampled_tree(task: Task, rollout: RolloutSettings) -> list[SampledPart]:
    """The parts of a task as a worker with FLUX.1-dev hands them over."""
    return list(RolloutWorker(ShapedPolicy(), rollout).sample(task))  # type: ignore[arg-type]


def sizes(part: SampledPart) -> dict[str, int]:
    """Bytes of a tree's first part as it travels: header, pictures, states and what is constant among them."""
    states = states_of(part)
    conditioning = sum(packed.bits.nbytes for name, packed in states.items() if name != "latents")
    return {
        "header": pickled(PartHeader.of(part)),
        "nodes": len(part.nodes),
        "pictures": len(part.media),
        "picture": pickled(part.media) // len(part.media),
        "conditioning": conditioning,
        "state": (pickled(states) - conditioning) // len(part.nodes),
    }


def pickled(value: object) -> int:
    """Bytes of a value as Ray stores it: pickled, its arrays beside."""
    buffers: list[object] = []
    head = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return len(head) + sum(buffer.raw().nbytes for buffer in buffers)  # type: ignore[attr-defined]
