"""How the embedded policy `glyphs` was made: a whole FluxPipeline, trained from scratch.

Three phases: the autoencoder on pictures of words; the text encoders and the transformer on clean
pictures, until it can spell; then on pictures of which about half are scribbled over. What comes out
writes correctly and spoils half of its work: a failure that a reward can mend.

Everything is seeded: the same seed on the same machine and number of threads gives the same weights.
"""

from pathlib import Path

import torch
from diffusers import FluxPipeline
from transformers import ByT5Tokenizer, CLIPTokenizer

from ..pretraining import small_flux, train_in_phases
from .words import draw_all, words

MAX_SEQUENCE_LENGTH = 6
SCRIBBLED_SHARE = 0.48


def character_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with one token per printable ASCII character and no merges."""
    characters = [chr(code) for code in range(33, 127)]
    tokens = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=8)


def new_pipeline() -> FluxPipeline:
    """`glyphs` before training: random weights in float32."""
    letters = ByT5Tokenizer(extra_ids=0)
    return small_flux(character_tokenizer(), letters, len(letters) + 5)


def pretrain(
    out: Path,
    *,
    seed: int = 0,
    vae_steps: int = 900,
    clean_steps: int = 1700,
    scribbled_steps: int = 600,
    pictures_per_word: int = 8,
) -> Path:
    """Train `glyphs` from scratch and save it to `out` as a diffusers folder of fp16 safetensors.

    Takes 10 to 20 minutes on two cores. The held-out words are never drawn.
    """
    torch.manual_seed(seed)
    pipeline = new_pipeline()
    train_words, _ = words()
    drawn = [word for word in train_words for _ in range(pictures_per_word)]
    clean, scribbled = draw_all(drawn, seed + 1, scribbled=0.0), draw_all(drawn, seed + 2, scribbled=SCRIBBLED_SHARE)
    steps = vae_steps, clean_steps, scribbled_steps
    return train_in_phases(pipeline, drawn, clean, scribbled, steps, MAX_SEQUENCE_LENGTH, out)
