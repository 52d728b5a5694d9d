"""Vision-language models with a head: the rewards HPS v3 (arXiv 2508.03789) and EditReward (arXiv 2509.26346).

Such a model is shown pictures and asked a question that ends in a token of its own. A small network over that token's
last hidden state gives the score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import Qwen2_5_VLModel, Qwen2VLImageProcessorPil, Qwen2VLModel

from ..proto.errors import InputError
from ..proto.media import Pictures
from ..proto.prompt import pictures_of
from ..proto.settings import RewardSettings
from .chat import Chat, check_backbone, load_chat, read_texts, taken
from .interface import Scorer, per_frame
from .linear import LinearHead
from .weights import device, published, read_weights, weights_file

SIDE = 448
"""Pictures are shown with about so many pixels squared, in their own aspect."""
TOKEN = "<|Reward|>"
"""Ends a question; the head looks at it."""


@dataclass(frozen=True)
class ChatModel:
    """How a published model was trained to be asked."""

    backbone: Any
    """Class of the vision-language model without its own head."""
    questions: tuple[tuple[str, ...], ...]
    """Each question as the names of the texts that it is put together from. `{text_prompt}` in them is the prompt."""
    heads: tuple[str, ...]
    """Beginning of the names of the weights of each question's head. The score is the mean over questions."""
    files: tuple[str, ...]
    """The authors' files with these texts."""
    sources: bool = False
    """Whether the picture that the policy started from is shown before the result."""


TRAINED = {
    "hps_v3": ChatModel(
        backbone=Qwen2VLModel,
        questions=(("INSTRUCTION", "prompt_with_special_token"),),
        heads=("rm_head.",),
        files=("data_collator_qwen.py",),
    ),
    "edit_reward": ChatModel(
        backbone=Qwen2_5_VLModel,
        questions=(
            ("INSTRUCTION_EDIT_FOLLOWING", "prompt_with_special_token"),
            ("INSTRUCTION_EDIT_QUALITY", "prompt_with_special_token"),
        ),
        heads=("rm_heads.head_0.", "rm_heads.head_1."),
        files=("prompts.py", "data_collator_qwen_edit.py"),
        sources=True,
    ),
}
"""Reward -> its model."""


class ScoredChat:
    """The mean that the heads, in float32, predict of people's ratings, without bounds; higher is better."""

    def __init__(self, reward: str, chat: Chat, heads: Sequence[LinearHead], questions: Sequence[str]) -> None:
        self._reward, self._chat, self._heads, self._questions = reward, chat, heads, questions
        self._sources = TRAINED[reward].sources
        self._eyes = Qwen2VLImageProcessorPil(size={"shortest_edge": SIDE**2, "longest_edge": SIDE**2})

    def __call__(self, pictures: Pictures, prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        """Scores of pictures, uint8 [n, height, width, 3]. Raises InputError for a prompt with one of the model's own
        tokens, and for one without a picture where that is shown too."""
        shown = [
            image
            for picture, prompt in zip(pictures, prompts, strict=True)
            for image in [*self._source(prompt, *picture.shape[:2]), Image.fromarray(picture)]
        ]
        seen = self._eyes(shown, return_tensors="pt")
        scores = []
        for question, head in zip(self._questions, self._heads, strict=True):
            asked = [question.format(text_prompt=prompt) for prompt in prompts]
            scores.append(head(self._chat.states(asked, seen.pixel_values, seen.image_grid_thw)[:, 0]))
        return {self._reward: torch.stack(scores).mean(dim=0).cpu().double().numpy()}

    def _source(self, prompt: str, height: int, width: int) -> list[Image.Image]:
        if not self._sources:
            return []
        if not pictures_of(prompt):
            raise InputError(f"rewards.{self._reward} compares with the picture that a prompt comes with; it has none")
        return [Image.fromarray(np.asarray(pictures_of(prompt)[0].fitted(height, width)))]


def load(reward: str, settings: RewardSettings, threads: int | None = None) -> Scorer:
    """`pretrained` is the file with the weights of backbone and heads, or its folder; `backbone` a folder with the
    configuration and the tokenizer of the model that it was made from; `instruction` the folder of its authors' texts.

    Raises InputError for files that are missing or not the model's.
    """
    asked = check_files(reward, settings)
    path, trained, own = weights_file(reward, settings), TRAINED[reward], device(settings)
    with published(reward, path):
        weights = read_weights(path)
        heads = [LinearHead(taken(weights, prefix), own, torch.relu) for prefix in trained.heads]
        chat = load_chat(reward, trained.backbone, weights, settings, (TOKEN,), own)
    return per_frame(ScoredChat(reward, chat, heads, asked))


load_hps_v3 = partial(load, "hps_v3")
load_edit_reward = partial(load, "edit_reward")


def check_files(reward: str, settings: RewardSettings) -> list[str]:
    """The questions of a reward. Raises InputError if files are missing. Weights are not read."""
    trained = TRAINED[reward]
    weights_file(reward, settings)
    check_backbone(reward, settings, trained.backbone)
    names = [name for question in trained.questions for name in question]
    texts = read_texts(reward, settings, "the folder 'dataset'", trained.files, names)
    return ["".join(texts[name] for name in question) for question in trained.questions]
