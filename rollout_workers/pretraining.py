"""Training a small FluxPipeline from scratch: how the embedded policies `glyphs` and `shapes` were made."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase, T5Config, T5EncoderModel

from ..proto.atomic_files import whole
from .policies.packing import packed, token_places


def small_flux(tokenizer: CLIPTokenizer, tokenizer_2: PreTrainedTokenizerBase, t5_tokens: int) -> FluxPipeline:
    """A FluxPipeline with random weights (float32, 1.3 million parameters in its transformer).

    `t5_tokens` is the size of the second text encoder's vocabulary.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=24,
        num_attention_heads=4,
        joint_attention_dim=96,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(8, 8, 8),
    )
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )
    text_encoder_2 = T5EncoderModel(
        T5Config(
            vocab_size=t5_tokens,
            d_model=96,
            d_kv=24,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    # Flux gives text tokens no position of their own: only T5's relative bias can tell their order.
    torch.nn.init.normal_(
        text_encoder_2.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight, std=2.5
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def train_in_phases(
    pipeline: FluxPipeline,
    prompts: list[str],
    clean: np.ndarray,
    spoilt: np.ndarray,
    steps: tuple[int, int, int],
    max_sequence_length: int,
    out: Path,
) -> Path:
    """Train the autoencoder on all pictures, then the rest on clean ones, then on spoilt ones; save the pipeline.

    `clean` and `spoilt` are uint8 [N, H, W, 3], one picture per prompt; `steps` are those of the three phases.
    """
    size = clean.shape[1:3]
    pictures = as_tensor(clean), as_tensor(spoilt)
    with _progress() as progress:
        train_vae(pipeline.vae, torch.cat(pictures), steps[0], progress)
        latents = [encode(pipeline, images) for images in pictures]
        for what, own, count, lr in zip(("clean", "spoilt"), latents, steps[1:], (2e-3, 7e-4), strict=True):
            train_flow(
                pipeline, prompts, own, count, lr, progress, what, size=size, max_sequence_length=max_sequence_length
            )
    return save(pipeline, out)


def _progress() -> Progress:
    """The progress of a training's phases in the terminal, to be used as a context."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )


def save(pipeline: FluxPipeline, out: Path) -> Path:
    """Save a pipeline as a new diffusers folder of fp16 safetensors."""
    for module in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.transformer):
        module.half()
    with whole(out) as temporary:
        pipeline.save_pretrained(temporary, safe_serialization=True)
    return out


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _steps(
    parameters: list[torch.nn.Parameter], steps: int, lr: float, label: str, progress: Progress
) -> Iterator[torch.optim.Optimizer]:
    """Yields the optimizer `steps` times; after each, steps it with warm-up and cosine decay."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * i / steps)))
    )
    task = progress.add_task(label, total=steps, loss=math.nan)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        yield optimizer
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress.advance(task)


def train_vae(vae: AutoencoderKL, images: torch.Tensor, steps: int, progress: Progress, batch: int = 16) -> None:
    """Reconstruction with a light KL; latents end up near unit variance by the pipeline's scaling factor."""
    for i, _ in enumerate(_steps(list(vae.parameters()), steps, 3e-3, "autoencoder", progress)):
        x = images[torch.randint(len(images), (batch,))]
        posterior = vae.encode(x).latent_dist
        # Decoding from noisier latents than the posterior's makes the decoder forgive the flow's small errors.
        z = posterior.sample()
        z = z + 0.15 * z.std().detach() * torch.randn_like(z)
        loss = F.l1_loss(vae.decode(z).sample, x) + 1e-4 * posterior.kl().mean() / z[0].numel()
        loss.backward()
        if i % 20 == 0:
            progress.update(progress.task_ids[-1], loss=loss.item())
    with torch.no_grad():
        z = vae.encode(images[:1024]).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1 / z.std()), shift_factor=float(z.mean()))
    vae.requires_grad_(False)


@torch.no_grad()
def encode(pipeline: FluxPipeline, images: torch.Tensor) -> torch.Tensor:
    """Packed, scaled latents of all images, float32 [N, tokens, 16]."""
    vae = pipeline.vae
    z = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(256)])
    z = (z - vae.config.shift_factor) * vae.config.scaling_factor
    return packed(z)


def train_flow(
    pipeline: FluxPipeline,
    prompts: list[str],
    latents: torch.Tensor,
    steps: int,
    lr: float,
    progress: Progress,
    label: str,
    *,
    size: tuple[int, int],
    max_sequence_length: int,
    batch: int = 64,
) -> None:
    """Flow matching on (prompt, latents) pairs: transformer and text encoders together.

    `size` is height and width of the pictures, `max_sequence_length` the tokens of a prompt.
    """
    height, width = size
    modules = (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2)
    parameters = [p for module in modules for p in module.parameters()]
    image_ids = token_places(height // 4, width // 4, torch.device("cpu"), torch.float32)
    text_ids = torch.zeros(max_sequence_length, 3)
    clip_ids = pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    t5_ids = pipeline.tokenizer_2(
        prompts, padding="max_length", max_length=max_sequence_length, truncation=True, return_tensors="pt"
    ).input_ids
    for i, _ in enumerate(_steps(parameters, steps, lr, label, progress)):
        rows = torch.randint(len(prompts), (batch,))
        x0, noise = latents[rows], torch.randn(batch, *latents.shape[1:])
        sigma = torch.sigmoid(torch.randn(batch) + 0.3)
        x = torch.lerp(x0, noise, sigma[:, None, None])
        velocity = pipeline.transformer(
            hidden_states=x,
            timestep=sigma,
            encoder_hidden_states=pipeline.text_encoder_2(t5_ids[rows])[0],
            pooled_projections=pipeline.text_encoder(clip_ids[rows]).pooler_output,
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0]
        loss = F.mse_loss(velocity, noise - x0)
        loss.backward()
        if i % 20 == 0:
            progress.update(progress.task_ids[-1], loss=loss.item())
