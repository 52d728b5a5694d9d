"""Rewards from CLIP's towers: CLIPScore, PickScore, HPS v2.1, and the LAION aesthetic predictor."""

import html
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from ..proto.errors import InputError
from ..proto.scoring import frames
from ..proto.settings import RewardSettings
from .images import Fit, cropped, cropped_by_torchvision, padded, prepared
from .linear import LinearHead

HEAD_WIDTHS = {"vision": 80, "text": 64}
"""Of OpenCLIP's ViT-H/14; names and shapes of its weights tell all else."""


class ClipTowers:
    """A CLIP model on a device, in float32."""

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: Any,
        device: torch.device,
        fit: Fit = cropped,
        clean: Callable[[str], str] = str,
    ) -> None:
        """Pictures are made square by `fit`; prompts go through `clean` before the tokenizer."""
        self.device, self._tokenizer, self._fit, self._clean = device, tokenizer, fit, clean
        self._model: Any = model.eval().requires_grad_(False).to(device)
        self._size = model.config.vision_config.image_size
        self._length = model.config.text_config.max_position_embeddings

    @property
    def scale(self) -> float:
        """CLIP's own factor before its softmax."""
        return float(self._model.logit_scale.exp())

    @torch.no_grad()
    def pictures(self, media: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Unit features, float32 [n, features], of uint8 [n, height, width, 3]."""
        pixels = prepared(media, self._size, self._fit, self.device)
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        return normalize(self._model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit features, float32 [n, features]; each distinct prompt goes through the tower once."""
        distinct = list(dict.fromkeys(prompts))
        tokens = self._tokenizer(
            [self._clean(prompt) for prompt in distinct],
            padding="max_length",
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        ).input_ids.to(self.device)
        pooled = self._model.text_model(input_ids=tokens).pooler_output
        features = normalize(self._model.text_projection(pooled), dim=-1)
        return features[[distinct.index(prompt) for prompt in prompts]]


class ClipSimilarity:
    """Cosine of picture and prompt, times a factor. Of a clip, the mean over its frames."""

    def __init__(self, reward: str, towers: ClipTowers, factor: float = 1.0, *, at_least: float = -np.inf) -> None:
        self._reward, self._towers, self._factor, self._least = reward, towers, factor, at_least

    def __call__(self, media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        pictures = self._towers.pictures(frames(media)).unflatten(0, (len(media), -1))
        cosines = torch.einsum("nfd,nd->nf", pictures, self._towers.prompts(prompts))
        scores = self._factor * cosines.clamp(min=self._least).mean(dim=1)
        return {self._reward: scores.cpu().double().numpy()}


class Aesthetic:
    """LAION's aesthetic predictor v2 (`sac+logos+ava1-l14-linearMSE.pth`) over ViT-L/14's unit features. Of a clip, the
    mean over its frames."""

    def __init__(self, towers: ClipTowers, weights: Mapping[str, torch.Tensor]) -> None:
        self._towers, self._head = towers, LinearHead(weights, towers.device)

    @torch.no_grad()
    def __call__(self, media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        scores = self._head(self._towers.pictures(frames(media)))
        return {"aesthetic": scores.reshape(len(media), -1).mean(dim=1).cpu().double().numpy()}


def load_clip_score(settings: RewardSettings, threads: int | None = None) -> ClipSimilarity:
    """CLIPScore (arXiv 2104.08718): 2.5 * max(cosine, 0). `pretrained` is a folder of a CLIP model."""
    return ClipSimilarity("clip_score", _from_folder("clip_score", settings), 2.5, at_least=0.0)


def load_pick_score(settings: RewardSettings, threads: int | None = None) -> ClipSimilarity:
    """PickScore v1 (arXiv 2305.01569): CLIP's scale times the cosine. `pretrained` is the folder PickScore_v1."""
    towers = _from_folder("pick_score", settings)
    return ClipSimilarity("pick_score", towers, towers.scale)


def load_hps(settings: RewardSettings, threads: int | None = None) -> ClipSimilarity:
    """HPS v2.1 (arXiv 2306.09341): the cosine. `pretrained` is the file HPS_v2.1_compressed.pt, or a folder with it."""
    path = weights_file("hps", settings)
    tokenizer = load_tokenizer("hps", settings.tokenizer or str(path.parent))
    with published("hps", path):
        weights = converted(read_weights(path))
        model = CLIPModel(clip_config(weights))
        model.load_state_dict(weights, strict=True)
    check_clip_tokenizer("hps", tokenizer, model.config)
    return ClipSimilarity("hps", ClipTowers(model, tokenizer, device(settings), padded, cleaned))


def cleaned(prompt: str) -> str:
    """A prompt as the `hpsv2` package reads it: in ordinary characters, single blanks and lower case.

    >>> cleaned("“Tom &amp;amp; Jerry”,  cafÃ©")
    '"tom & jerry", café'
    """
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split()).lower()


def load_aesthetic(settings: RewardSettings, threads: int | None = None) -> Aesthetic:
    """`pretrained` is the file of the predictor, or a folder with it, `backbone` the folder of CLIP ViT-L/14."""
    path = weights_file("aesthetic", settings)
    backbone = settings.model_copy(update={"pretrained": settings.backbone})
    towers = _from_folder("aesthetic", backbone, "backbone", cropped_by_torchvision)
    with published("aesthetic", path):
        return Aesthetic(towers, read_weights(path))


def device(settings: RewardSettings) -> torch.device:
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


PUBLISHED = {
    "aesthetic": "sac+logos+ava1-l14-linearMSE.pth",
    "hps": "HPS_v2.1_compressed.pt",
    "image_reward": "ImageReward.pt",
}
"""Reward -> file of its published weights."""


def check_files(reward: str, settings: RewardSettings) -> None:
    """Raises InputError if files that a built-in reward is made of aren't there. Weights are not read."""
    if reward in PUBLISHED:
        path = weights_file(reward, settings)
        if reward == "aesthetic":
            _clip_folder(reward, settings.backbone, "backbone")
        else:
            load_tokenizer(reward, settings.tokenizer or str(path.parent))
    elif reward in ("clip_score", "pick_score"):
        folder = _clip_folder(reward, settings.pretrained, "pretrained")
        tokenizer = load_tokenizer(reward, settings.tokenizer or str(folder))
        check_clip_tokenizer(reward, tokenizer, CLIPConfig.from_pretrained(folder, local_files_only=True))


def weights_file(reward: str, settings: RewardSettings) -> Path:
    """The file that `pretrained` names, itself or by its folder. Raises InputError if it isn't there."""
    name, path = PUBLISHED[reward], Path(settings.pretrained or "")
    path = path / name if path.is_dir() else path
    if settings.pretrained is None or not path.is_file():
        raise InputError(f"rewards.{reward}.pretrained is {settings.pretrained!r}; it must be {name}, or its folder")
    return path


@contextmanager
def published(reward: str, path: Path) -> Iterator[None]:
    """Within it, whatever goes wrong with weights is told as an InputError."""
    try:
        yield
    except (KeyError, IndexError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"rewards.{reward}.pretrained is '{path}', which doesn't hold the weights of {PUBLISHED[reward]}: {reason}"
        ) from error


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a safetensors file, or of a PyTorch one, of which no code is run."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    return dict(content.get("state_dict", content))


def _clip_folder(reward: str, folder: str | None, setting: str) -> Path:
    path = Path(folder or "")
    if folder is None or _model_type(path / "config.json") != "clip" or not any(path.glob("*.safetensors")):
        raise InputError(
            f"rewards.{reward}.{setting} is {folder!r}; it must be the folder of a CLIP model, with config.json and "
            "model.safetensors"
        )
    return path


def _model_type(config: Path) -> object:
    """What a model's configuration says that it is; None if there is none to be read."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("model_type") if isinstance(content, dict) else None


def _from_folder(reward: str, settings: RewardSettings, setting: str = "pretrained", fit: Fit = cropped) -> ClipTowers:
    folder = _clip_folder(reward, settings.pretrained, setting)
    tokenizer = load_tokenizer(reward, settings.tokenizer or str(folder))
    try:
        model, found = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if absent := sorted(found["missing_keys"]):
            raise ValueError(f"{len(absent)} weights are missing, such as {absent[0]}")
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"rewards.{reward}.{setting} is '{folder}'; it must be the folder of a CLIP model: {reason}"
        ) from error
    check_clip_tokenizer(reward, tokenizer, model.config)
    return ClipTowers(model, tokenizer, device(settings), fit)


SAMPLE = "a photo of a cat"
SAMPLE_IDS = {
    49408: (49406, 320, 1125, 539, 320, 2368, 49407),
    30524: (101, 1037, 6302, 1997, 1037, 4937, 102),
}
"""Entries of a published vocabulary (CLIP's; bert-base-uncased's and two of BLIP's) -> tokens of `SAMPLE` in it."""


def check_tokenizer(reward: str, tokenizer: Any, entries: int, last: int | None, whose: str = "CLIP's") -> None:
    """Raises InputError for a tokenizer that isn't that of a text tower with so many `entries`.

    `last` is the token at the end of each text, if it is known.
    """
    tokens = tuple(tokenizer(SAMPLE).input_ids)
    if entries in SAMPLE_IDS:
        fits = tokens == SAMPLE_IDS[entries]
    else:
        fits = len(tokenizer) <= entries and last in (None, tokens[-1])
    if not fits:
        raise InputError(
            f"rewards.{reward}.tokenizer isn't the model's: it has {len(tokenizer)} entries and makes {list(tokens)} "
            f"of '{SAMPLE}', the model's has {entries}; name a folder that has {whose}"
        )


def check_clip_tokenizer(reward: str, tokenizer: Any, config: CLIPConfig) -> None:
    """Raises InputError for a tokenizer that isn't the one of a CLIP model."""
    text = config.text_config
    # Old configurations say 2, whatever it is. The token of the highest number ends the text then.
    last = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
    check_tokenizer(reward, tokenizer, text.vocab_size, last)


def load_tokenizer(reward: str, folder: str, whose: str = "CLIP's") -> Any:
    """Raises InputError for a folder that holds none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"no tokenizer is in '{folder}'; name a folder that has {whose} with rewards.{reward}.tokenizer: {reason}"
        ) from error


# OpenCLIP's names, as HPS v2.1 is published ---------------------------------------------------------------------------

_TOWER = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "ln_final": "final_layer_norm",
}
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def converted(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenCLIP's weights under the names of transformers' CLIPModel, float32."""
    found: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        own, tower = name.removeprefix("visual."), "vision_model" if name.startswith("visual.") else "text_model"
        value = value.float()
        if name in ("visual.proj", "text_projection"):
            found["visual_projection.weight" if "visual" in name else "text_projection.weight"] = value.T.contiguous()
        elif name == "logit_scale":
            found[name] = value
        elif own.startswith("transformer.resblocks."):
            number, part = own.removeprefix("transformer.resblocks.").split(".", 1)
            layer = f"{tower}.encoder.layers.{number}"
            if part.startswith("attn.in_proj_"):
                kind = part.removeprefix("attn.in_proj_")
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    found[f"{layer}.self_attn.{letter}_proj.{kind}"] = third
            else:
                module, kind = part.rsplit(".", 1)
                found[f"{layer}.{_BLOCK[module]}.{kind}"] = value
        elif own in _TOWER:
            found[f"{tower}.{_TOWER[own]}"] = value
        elif own.rpartition(".")[0] in _TOWER:
            module, _, kind = own.rpartition(".")
            found[f"{tower}.{_TOWER[module]}.{kind}"] = value
        # What is left, such as the attention mask, is no weight.
    return found


def clip_config(weights: Mapping[str, torch.Tensor]) -> CLIPConfig:
    """The shape of an OpenCLIP model whose weights are `converted`."""
    towers = {}
    for name, width in HEAD_WIDTHS.items():
        hidden = weights[f"{name}_model.encoder.layers.0.layer_norm1.weight"].shape[0]
        towers[name] = {
            "hidden_size": hidden,
            "intermediate_size": weights[f"{name}_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": 1 + max(int(n.split(".")[3]) for n in weights if n.startswith(f"{name}_model.enc")),
            "num_attention_heads": max(1, hidden // width),
            "hidden_act": "gelu",
        }
    patch = weights["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    patches = weights["vision_model.embeddings.position_embedding.weight"].shape[0] - 1
    vocabulary = weights["text_model.embeddings.token_embedding.weight"].shape[0]
    return CLIPConfig(
        text_config={
            **towers["text"],
            "vocab_size": vocabulary,
            "max_position_embeddings": weights["text_model.embeddings.position_embedding.weight"].shape[0],
            "eos_token_id": vocabulary - 1,
            "bos_token_id": vocabulary - 2,
        },
        vision_config={**towers["vision"], "patch_size": patch, "image_size": round(patches**0.5) * patch},
        projection_dim=weights["text_projection.weight"].shape[0],
    )
