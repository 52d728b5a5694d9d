"""Vision-language models with a head: the rewards HPS v3 (arXiv 2508.03789) and EditReward (arXiv 2509.26346).

Such a model is shown pictures and asked a question that ends in a token of its own. A small network over that token's
last hidden state gives the score. What the question says is read from its authors' files, of which no code is run.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import Qwen2_5_VLModel, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ..proto.errors import InputError
from ..proto.media import Pictures
from ..proto.prompts import pictures_of
from ..proto.settings import RewardSettings
from ..proto.usage import on_gpu
from .linear import LinearHead
from .scorers import Scorer, per_frame
from .weights import device, load_tokenizer, model_type, published, read_weights, weights_file

SIDE = 448
"""Pictures are shown with about so many pixels squared, in their own aspect."""
TOKEN = "<|Reward|>"
"""Ends a question; the head looks at it."""


@dataclass(frozen=True)
class Trained:
    """How a published model was trained to be asked."""

    backbone: Any
    """Class of the vision-language model without its own head."""
    questions: tuple[tuple[str, ...], ...]
    """Each question as the names of the texts that it is put together from. `{text_prompt}` in them is the prompt."""
    heads: tuple[str, ...]
    """For each question its head, by the beginning of the names of its weights. The score is the mean over them."""
    files: tuple[str, ...]
    """The authors' files with these texts."""
    sources: bool = False
    """Whether the picture that the policy started from is shown before the result."""


TRAINED = {
    "hps_v3": Trained(
        backbone=Qwen2VLModel,
        questions=(("INSTRUCTION", "prompt_with_special_token"),),
        heads=("rm_head.",),
        files=("data_collator_qwen.py",),
    ),
    "edit_reward": Trained(
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
    """The mean that the heads predict of people's ratings, without bounds; higher is better.

    The backbone runs in bfloat16 on a GPU, as its authors run it, and in float32 on a CPU; the heads in float32.
    """

    def __init__(
        self, reward: str, model: Any, heads: Sequence[LinearHead], questions: Sequence[str], tokenizer: Any
    ) -> None:
        self._reward, self._heads, self._questions, self._tokenizer = reward, heads, questions, tokenizer
        self._model, self._sources = model.eval().requires_grad_(False), TRAINED[reward].sources
        self._eyes = Qwen2VLImageProcessorPil(size={"shortest_edge": SIDE**2, "longest_edge": SIDE**2})
        self._picture = tokenizer.convert_ids_to_tokens(model.config.image_token_id)
        self._token = tokenizer.convert_tokens_to_ids(TOKEN)

    @torch.no_grad()
    def __call__(self, pictures: Pictures, prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        """Scores of pictures, uint8 [n, height, width, 3]. Raises InputError for a prompt with one of the model's own
        tokens, and for one without a picture where that is shown too."""
        shown = [
            image
            for picture, prompt in zip(pictures, prompts, strict=True)
            for image in [*self._source(prompt, *picture.shape[:2]), Image.fromarray(picture)]
        ]
        seen = self._eyes(shown, return_tensors="pt")
        scores = [
            head(self._state([question.format(text_prompt=prompt) for prompt in prompts], seen))
            for question, head in zip(self._questions, self._heads, strict=True)
        ]
        return {self._reward: torch.stack(scores).mean(dim=0).cpu().double().numpy()}

    def _source(self, prompt: str, height: int, width: int) -> list[Image.Image]:
        if not self._sources:
            return []
        if not pictures_of(prompt):
            raise InputError(f"rewards.{self._reward} compares with the picture that a prompt comes with; it has none")
        return [Image.fromarray(np.asarray(pictures_of(prompt)[0].fitted(height, width)))]

    def _state(self, questions: Sequence[str], seen: Any) -> torch.Tensor:
        """Last hidden state of each question's token, float32 [n, features], beside what is seen."""
        own = self._model.device
        each, patches = 1 + self._sources, self._eyes.merge_size**2
        counts = (seen.image_grid_thw.prod(dim=1) // patches).reshape(-1, each).tolist()
        tokens = self._tokenizer(
            [self._chat(question, count) for question, count in zip(questions, counts, strict=True)],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(own)
        at = tokens.input_ids == self._token
        shown = (tokens.input_ids == self._model.config.image_token_id).sum(dim=1).tolist()
        if shown != [sum(count) for count in counts] or not (at.sum(dim=1) == 1).all():
            raise InputError(f"a prompt has one of the tokens {self._picture} and {TOKEN} of rewards.{self._reward}")
        # The authors' forward pass counts positions in one dimension, pictures like text.
        places = torch.arange(tokens.input_ids.shape[1], device=own).expand(3, *tokens.input_ids.shape)
        with on_gpu(own):
            states = self._model(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                position_ids=places,
                pixel_values=seen.pixel_values.to(own),
                image_grid_thw=seen.image_grid_thw.to(own),
                use_cache=False,
            ).last_hidden_state
        return states[at].float()

    def _chat(self, question: str, counts: Sequence[int]) -> str:
        """A question as the model reads it, with a token for each patch of its pictures."""
        content: list[dict[str, str]] = [{"type": "image"}] * len(counts)
        message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        parts = self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        first, *rest = parts.split(self._picture, len(counts))
        return first + "".join(self._picture * count + part for count, part in zip(counts, rest, strict=True))


def load(reward: str, settings: RewardSettings, threads: int | None = None) -> Scorer:
    """`pretrained` is the file with the weights of backbone and heads, or its folder; `backbone` a folder with the
    configuration and the tokenizer of the model that it was made from; `instruction` the folder of its authors' texts.

    Raises InputError for files that are missing or not the model's.
    """
    asked = check_files(reward, settings)
    path, trained = weights_file(reward, settings), TRAINED[reward]
    tokenizer = load_tokenizer(reward, settings.tokenizer or settings.backbone or "", "Qwen-VL's")
    tokenizer.add_tokens([TOKEN], special_tokens=True)
    own = device(settings)
    with published(reward, path):
        weights = read_weights(path)
        heads = [LinearHead(taken(weights, prefix), own, torch.relu) for prefix in trained.heads]
        config = trained.backbone.config_class.from_pretrained(settings.backbone, local_files_only=True)
        body = backbone_weights(weights)
        entries = config.text_config.vocab_size = len(body["language_model.embed_tokens.weight"])
        if entries != len(tokenizer):
            raise ValueError(f"its vocabulary has {entries} entries, and the tokenizer with {TOKEN} {len(tokenizer)}")
        model, found = trained.backbone.from_pretrained(
            None,
            config=config,
            state_dict=body,
            dtype=torch.bfloat16 if own.type == "cuda" else torch.float32,
            output_loading_info=True,
        )
        if odd := sorted({*found["missing_keys"], *found["unexpected_keys"]}):
            raise ValueError(f"{len(odd)} weights are missing or too many, such as {odd[0]}")
    return per_frame(ScoredChat(reward, model.to(own), heads, asked, tokenizer))


load_hps_v3 = partial(load, "hps_v3")
load_edit_reward = partial(load, "edit_reward")


def check_files(reward: str, settings: RewardSettings) -> list[str]:
    """The questions of a reward. Raises InputError if files are missing. Weights are not read."""
    trained = TRAINED[reward]
    weights_file(reward, settings)
    kind = trained.backbone.config_class.model_type
    if settings.backbone is None or model_type(Path(settings.backbone) / "config.json") != kind:
        raise InputError(
            f"rewards.{reward}.backbone is {settings.backbone!r}; it must be the folder of a model whose config.json "
            f"says '{kind}', with its tokenizer; weights aren't needed there"
        )
    paths = [Path(settings.instruction or "") / name for name in trained.files]
    if settings.instruction is None or not all(path.is_file() for path in paths):
        raise InputError(
            f"rewards.{reward}.instruction is {settings.instruction!r}; it must be the folder 'dataset' of its code as "
            f"published, with {' and '.join(trained.files)}"
        )
    texts: dict[str, str] = {}
    for path in paths:
        texts |= literals(path.read_text(encoding="utf-8"))
    try:
        return ["".join(texts[name] for name in question) for question in trained.questions]
    except KeyError as error:
        raise InputError(
            f"rewards.{reward}.instruction is {settings.instruction!r}, whose files lack {error}"
        ) from error


def literals(code: str) -> dict[str, str]:
    """Name -> text, of those that Python code assigns as they stand; no code is run."""
    assigned = [node for node in ast.parse(code).body if isinstance(node, ast.Assign)]
    return {
        target.id: node.value.value
        for node in assigned
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def taken(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The weights whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def backbone_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the backbone under the names of today's transformers, of a file with these or with those up to
    4.51: `visual.` and `model.` were then side by side. Heads, that of the language model too, are left out."""
    of_today = taken(weights, "model.")
    if any(name.startswith("language_model.") for name in of_today):
        return of_today
    before = {f"visual.{name}": weight for name, weight in taken(weights, "visual.").items()}
    return before | {f"language_model.{name}": weight for name, weight in of_today.items()}
