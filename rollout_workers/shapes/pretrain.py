"""How the embedded policy `shapes` was made: a whole FluxPipeline, trained from scratch.

Three phases: the autoencoder on pictures; the text encoders and the transformer on pictures of what their prompts say,
until most are right; then on pictures for which each word of the prompt was misread with some probability. What comes
out draws clean shapes, and about a third of its pictures are wholly right: a failure that a reward can mend.

Everything is seeded: the same seed on the same machine and number of threads gives the same weights.
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer, T5Tokenizer

from ..pretraining import small_flux, train_in_phases
from .scenes import draw_all, scenes

MAX_SEQUENCE_LENGTH = 8
MISREAD_SHARE = 0.15


def _clip_tokenizer(prompts: list[str]) -> CLIPTokenizer:
    """CLIP's tokenizer, with merges that make one token of every word in the prompts."""
    end = "</w>"
    learned = Tokenizer(BPE(end_of_word_suffix=end))
    learned.pre_tokenizer = Whitespace()
    learned.train_from_iterator(prompts, BpeTrainer(vocab_size=400, end_of_word_suffix=end, show_progress=False))
    model = json.loads(learned.to_str())["model"]
    vocabulary = {token: i for i, token in enumerate([*model["vocab"], "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in model["merges"]], model_max_length=9)


def _t5_tokenizer(prompts: list[str]) -> T5Tokenizer:
    """T5's tokenizer, with one token per word of the prompts."""
    words = sorted({word for prompt in prompts for word in prompt.split()})
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -9.0), *((f"▁{word}", -1.0) for word in words)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def pretrain(
    out: Path,
    *,
    seed: int = 0,
    vae_steps: int = 1200,
    clean_steps: int = 1500,
    misread_steps: int = 500,
    pictures_per_scene: int = 6,
) -> Path:
    """Train `shapes` from scratch and save it to `out` as a diffusers folder of fp16 safetensors.

    Takes under 40 minutes on two cores. The scenes for validation and those held out are never drawn.
    """
    torch.manual_seed(seed)
    train_scenes, _, _ = scenes()
    drawn = [scene for scene in train_scenes for _ in range(pictures_per_scene)]
    prompts = [str(scene) for scene in drawn]
    words = _t5_tokenizer(prompts)
    pipeline = small_flux(_clip_tokenizer(prompts), words, len(words))
    clean, misread = draw_all(drawn, seed + 1), draw_all(drawn, seed + 2, misread_share=MISREAD_SHARE)
    steps = vae_steps, clean_steps, misread_steps
    return train_in_phases(pipeline, prompts, clean, misread, steps, MAX_SEQUENCE_LENGTH, out)
