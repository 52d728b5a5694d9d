"""DeQA (arXiv 2501.11561) as a reward: how good a picture is technically, from 1 to 5, whatever its prompt.

Its folder brings the model's code, which is run and wants an old transformers, so it gets an environment of its own:

    hf download zhiyuanyou/DeQA-Score-Mix3 --local-dir models/DeQA-Score-Mix3
    export DEQA_MODEL=$PWD/models/DeQA-Score-Mix3 PYTHONPATH=examples

and in the recipe:

    rewards:
      deqa: {scorer: "deqa:load"}
    pools:
      rewards:
        deqa: {gpus: 1, runtime_env: {pip: ["transformers==4.36.1", "sentencepiece", "icecream"]}}

The same recipe starts it as a service for other runs: `branchgrpo serve-rewards RECIPE`. Its weights take 16 GB in half
precision.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

BATCH = 8
"""Maximum pictures that go through the model at once."""


class DeQA:
    """The mean of the five grades, from bad (1) to excellent (5), by the probability that the model gives each word."""

    def __init__(self, model: Any) -> None:
        """`model` has a method `score`, from pictures of Pillow to numbers."""
        self._model = model

    @torch.no_grad()
    def __call__(self, media: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Reward `deqa` of pictures, uint8 [n, height, width, 3]; of clips, with frames after n, the mean over them."""
        frames = [Image.fromarray(frame) for frame in media.reshape(-1, *media.shape[-3:])]
        batches = [frames[first : first + BATCH] for first in range(0, len(frames), BATCH)]
        scores = torch.cat([self._model.score(batch).float().cpu() for batch in batches])
        return {"deqa": scores.double().numpy().reshape(len(media), -1).mean(axis=1)}


def load(threads: int | None = None) -> DeQA:
    """Loads the model with the code in its folder, onto a GPU if there is one."""
    on_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        os.environ["DEQA_MODEL"],
        trust_remote_code=True,
        local_files_only=True,
        attn_implementation="eager",
        torch_dtype=torch.float16 if on_gpu else torch.float32,
    )
    return DeQA(model.eval().to("cuda" if on_gpu else "cpu"))
