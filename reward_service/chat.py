"""Vision-language models that are asked about pictures and read at tokens of their own in the question.

What such a model is asked is read from its authors' files, of which no code is run.
"""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..proto.errors import InputError
from ..proto.settings import RewardSettings
from ..proto.usage import on_gpu
from .weights import load_tokenizer, model_type


class Chat:
    """A model that is asked about what it is shown.

    It runs in bfloat16 on a GPU, as its authors run it, and in float32 on a CPU.
    """

    def __init__(self, reward: str, model: Any, tokenizer: Any, tokens: Sequence[str]) -> None:
        """`tokens` are those that it is read at, which each question has once and in this order."""
        self.device = model.device
        self._reward, self._model, self._tokenizer = reward, model.eval().requires_grad_(False), tokenizer
        self._picture = tokenizer.convert_ids_to_tokens(model.config.image_token_id)
        self._tokens, self._ids = tokens, tokenizer.convert_tokens_to_ids(list(tokens))

    @torch.no_grad()
    def states(self, questions: Sequence[str], patches: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Last hidden states of the tokens of each question, float32 [n, tokens, features].

        `patches` are those of all pictures and clips that are shown, as many beside each question; `grids`, int64
        [shown, 3], says how many each has in time, height and width. Raises InputError for a question with one of the
        model's own tokens more.
        """
        config, own = self._model.config, self.device
        each = grids.prod(dim=1) // config.vision_config.spatial_merge_size**2
        counts = each.reshape(len(questions), -1).tolist()
        tokens = self._tokenizer(
            [self._chat(question, count) for question, count in zip(questions, counts, strict=True)],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(own)
        ids = tokens.input_ids
        at = torch.isin(ids, torch.tensor(self._ids, device=own))
        pictures = (ids == config.image_token_id).sum(dim=1).tolist()
        if pictures != [sum(count) for count in counts] or ids[at].tolist() != self._ids * len(questions):
            told = " and ".join([self._picture, *self._tokens])
            raise InputError(f"a prompt has one of the tokens {told} of rewards.{self._reward}")
        # The authors' forward pass counts positions in one dimension, pictures like text.
        places = torch.arange(ids.shape[1], device=own).expand(3, *ids.shape)
        with on_gpu(own):
            states = self._model(
                input_ids=ids,
                attention_mask=tokens.attention_mask,
                position_ids=places,
                pixel_values=patches.to(own),
                image_grid_thw=grids.to(own),
                use_cache=False,
            ).last_hidden_state
        return states[at].float().reshape(len(questions), len(self._ids), -1)

    def _chat(self, question: str, counts: Sequence[int]) -> str:
        """A question as the model reads it, with a token for each patch of its pictures."""
        content: list[dict[str, str]] = [{"type": "image"}] * len(counts)
        message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        parts = self._tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        first, *rest = parts.split(self._picture, len(counts))
        return first + "".join(self._picture * count + part for count, part in zip(counts, rest, strict=True))


def load_chat(
    reward: str,
    model_class: Any,
    weights: Mapping[str, torch.Tensor],
    settings: RewardSettings,
    tokens: Sequence[str],
    device: torch.device,
) -> Chat:
    """A model of published weights, with the configuration and tokenizer of the one that it was made from.

    Raises ValueError for weights that aren't the model's, InputError for a folder without a tokenizer.
    """
    tokenizer = load_tokenizer(reward, settings.tokenizer or settings.backbone or "", "Qwen-VL's")
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    config = model_class.config_class.from_pretrained(settings.backbone, local_files_only=True)
    body = backbone_weights(weights)
    entries = config.text_config.vocab_size = len(body["language_model.embed_tokens.weight"])
    if entries != len(tokenizer):
        own = " and ".join(tokens)
        raise ValueError(f"its vocabulary has {entries} entries, and the tokenizer with {own} {len(tokenizer)}")
    model, found = model_class.from_pretrained(
        None,
        config=config,
        state_dict=body,
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
        output_loading_info=True,
    )
    if odd := sorted({*found["missing_keys"], *found["unexpected_keys"]}):
        raise ValueError(f"{len(odd)} weights are missing or too many, such as {odd[0]}")
    return Chat(reward, model.to(device), tokenizer, tokens)


def check_backbone(reward: str, settings: RewardSettings, model_class: Any) -> None:
    """Raises InputError if `backbone` isn't a folder of the model that a reward was made from."""
    kind = model_class.config_class.model_type
    if settings.backbone is None or model_type(Path(settings.backbone) / "config.json") != kind:
        raise InputError(
            f"rewards.{reward}.backbone is {settings.backbone!r}; it must be the folder of a model whose config.json "
            f"says '{kind}', with its tokenizer; weights aren't needed there"
        )


def read_texts(
    reward: str, settings: RewardSettings, folder: str, files: Sequence[str], names: Sequence[str]
) -> dict[str, str]:
    """The texts of these names in the authors' files. Raises InputError if `instruction` isn't the folder with them."""
    where = f"rewards.{reward}.instruction is {settings.instruction!r}"
    paths = [Path(settings.instruction or "") / name for name in files]
    if settings.instruction is None or not all(path.is_file() for path in paths):
        raise InputError(f"{where}; it must be {folder} of its code as published, with {' and '.join(files)}")
    texts: dict[str, str] = {}
    for path in paths:
        try:
            texts |= literals(path.read_bytes())
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"{where}, whose {path.name} can't be read: {error}") from error
    if lacking := [name for name in names if name not in texts]:
        raise InputError(f"{where}, whose files lack '{lacking[0]}'")
    return texts


def literals(code: str | bytes) -> dict[str, str]:
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
