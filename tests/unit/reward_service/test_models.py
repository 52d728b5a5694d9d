"""Reward models on weights in their published layouts, against their own packages and against transformers."""

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.scoring import ScoreRequest
from branchgrpo.proto.settings import RewardSettings
from branchgrpo.reward_service import clip, image_reward
from branchgrpo.reward_service import preprocessing as images
from branchgrpo.reward_service.scorers import SCORERS, Scorers, check_source
from branchgrpo.reward_service.weights import PUBLISHED, load_whole
from branchgrpo.rollout_workers.glyphs.pretrain import character_tokenizer
from PIL import Image
from published import PROMPTS, pictures, tokens, weights
from support import scores
from transformers import CLIPConfig, CLIPModel, T5Config, T5EncoderModel
from transformers.image_transforms import center_crop
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

REFERENCE = json.loads((Path(__file__).parent / "reference_scores.json").read_text())


class Ids:
    """A tokenizer of 60 entries that knows the prompts' ids already."""

    def __init__(self, ids: torch.Tensor) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return 60

    def __call__(self, prompts: Sequence[str] | str, **_: Any) -> Any:
        if isinstance(prompts, str):
            return SimpleNamespace(input_ids=[self._ids[0, 0], self._ids.max()])
        ids = self._ids[[PROMPTS.index(prompt) for prompt in prompts]]
        found = SimpleNamespace(input_ids=ids, attention_mask=(ids != 0).long())
        found.to = lambda device: found
        return found


@pytest.mark.parametrize(
    ("reward", "file", "ids", "nested"),
    [
        ("hps", "HPS_v2.1_compressed.pt", tokens(16, 58, 59, 0), True),
        ("image_reward", "ImageReward.pt", tokens(35, 1, 2, 0), False),
    ],
)
def test_scores_are_those_of_the_published_package(
    reward: str, file: str, ids: torch.Tensor, nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures higher than wide, wider than high, of one row or column, and of the model's own size."""
    module = clip if reward == "hps" else image_reward
    monkeypatch.setattr(module, "load_tokenizer", lambda *_: Ids(ids))
    own = weights(REFERENCE[reward]["shapes"])
    torch.save({"state_dict": own} if nested else own, tmp_path / file)
    for size, expected in zip(REFERENCE["sizes"], REFERENCE[reward]["scores"], strict=True):
        found = scores(reward, RewardSettings(pretrained=str(tmp_path)), pictures(*size))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        again = scores(reward, RewardSettings(pretrained=str(tmp_path / file)), pictures(*size)[::-1], PROMPTS[::-1])
        np.testing.assert_allclose(again, found[::-1], atol=1e-5)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    tokenizer = character_tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = CLIPModel(
        CLIPConfig(
            text_config={
                **small,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 8,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
            },
            vision_config={**small, "image_size": 28, "patch_size": 14},
            projection_dim=24,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SHAPES = [(short, short + more) for short in (1, 2, 13, 28, 29) for more in range(8)]


SHAPES += [(1, 60), (75, 200), (480, 848), (832, 1216), (840, 1536), (1088, 1920)]


def noise(height: int, width: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """By Pillow, columns first, whatever order it would choose by itself."""
    image = Image.fromarray(picture).resize((width, picture.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def values(prepared: torch.Tensor) -> np.ndarray:
    """Pixels of a prepared picture, float [height, width, 3] in [0, 255]."""
    (pixels,) = prepared.permute(0, 2, 3, 1).double().numpy()
    return (pixels * images.CLIP_STD + images.CLIP_MEAN) * 255


@pytest.mark.parametrize("shape", [*SHAPES, *(shape[::-1] for shape in SHAPES)], ids=str)
def test_pictures_are_cropped_as_in_torchvision(shape: tuple[int, int]) -> None:
    size = 224 if max(shape) > 200 else 28
    media, short = noise(*shape), min(shape)
    whole = resized(media[0], *(int(size * side / short) for side in shape))
    by_transformers = center_crop(whole, (size, size), input_data_format="channels_last")
    # torchvision.transforms.functional.center_crop
    top, left = (int(round((side - size) / 2.0)) for side in whole.shape[:2])  # noqa: RUF046
    by_torchvision = whole[top : top + size, left : left + size]
    expected = {images.cropped: by_transformers, images.cropped_by_torchvision: by_torchvision}
    for fit, picture in expected.items():
        found = values(images.prepared(media, size, fit, torch.device("cpu")))
        np.testing.assert_allclose(found, picture, atol=1e-3)


@pytest.mark.parametrize("shape", [*SHAPES, *(shape[::-1] for shape in SHAPES)], ids=str)
def test_pictures_are_padded_as_the_hpsv2_package_does(shape: tuple[int, int]) -> None:
    size = 224 if max(shape) > 200 else 28
    media, scale = noise(*shape), size / float(max(shape))
    height, width = (max(1, round(side * scale)) for side in shape)
    expected = np.zeros((size, size, 3))
    top, left = (size - height) // 2, (size - width) // 2
    for channel in range(3):  # Pillow computes with floats in this mode
        alone = Image.fromarray(media[0, ..., channel].astype(np.float32))
        resized = np.asarray(alone.resize((width, height), Image.Resampling.BICUBIC))
        expected[top : top + height, left : left + width, channel] = resized
    found = values(images.prepared(media, size, images.padded, torch.device("cpu")))
    np.testing.assert_allclose(found, expected, atol=1e-3)


@torch.no_grad()
def features(folder: Path, media: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Of pictures and prompts, not normalised, and the scale: by transformers and Pillow."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), character_tokenizer()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    pixels = processor([Image.fromarray(picture) for picture in media], return_tensors="pt").pixel_values
    out = model(**tokenizer(list(PROMPTS), padding="max_length", return_tensors="pt"), pixel_values=pixels)
    return out.image_embeds, out.text_embeds, float(model.logit_scale.exp())


@pytest.mark.parametrize("size", [(40, 64), (61, 28), (28, 28), (28, 61), (28, 31), (200, 75)], ids=str)
def test_similarities_are_those_of_transformers_and_pillow(clip_folder: Path, size: tuple[int, int]) -> None:
    media, settings = pictures(*size), RewardSettings(pretrained=str(clip_folder))
    seen, read, scale = features(clip_folder, media)
    cosine = torch.cosine_similarity(seen, read).numpy()
    assert (cosine < 0).any(), "some are cut off"
    np.testing.assert_allclose(scores("clip_score", settings, media), 2.5 * np.maximum(cosine, 0), atol=1e-3)
    np.testing.assert_allclose(scores("pick_score", settings, media), scale * cosine, atol=1e-3)


def test_prompts_are_cleaned_as_the_hpsv2_package_does() -> None:
    assert {text: clip.cleaned(text) for text in REFERENCE["cleaned"]} == REFERENCE["cleaned"]


def test_hps_reads_cleaned_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Reading(Ids):
        def __call__(self, prompts: Sequence[str] | str, **_: Any) -> Any:
            if not isinstance(prompts, str):
                read.extend(prompts)
                prompts = PROMPTS[: len(prompts)]
            return super().__call__(prompts)

    monkeypatch.setattr(clip, "load_tokenizer", lambda *_: Reading(tokens(16, 58, 59, 0)))
    torch.save(weights(REFERENCE["hps"]["shapes"]), tmp_path / "HPS_v2.1_compressed.pt")
    scores("hps", RewardSettings(pretrained=str(tmp_path)), pictures(28, 28), ["Tom &amp; Jerry", "“A”", "a", "b"])
    assert read == ["tom & jerry", '"a"', "a", "b"]


class OfAnother(Ids):
    def __init__(self, entries: int, *ids: int) -> None:
        super().__init__(torch.tensor([ids]))
        self._entries = entries

    def __len__(self) -> int:
        return self._entries


@pytest.mark.parametrize(
    ("reward", "file", "tokenizer"),
    [
        ("hps", "HPS_v2.1_compressed.pt", OfAnother(40, 5, 2)),  # ends otherwise
        ("hps", "HPS_v2.1_compressed.pt", OfAnother(80, 58, 59)),  # too large
        ("image_reward", "ImageReward.pt", OfAnother(80, 1, 2)),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(
    reward: str, file: str, tokenizer: Ids, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = clip if reward == "hps" else image_reward
    monkeypatch.setattr(module, "load_tokenizer", lambda *_: tokenizer)
    torch.save(weights(REFERENCE[reward]["shapes"]), tmp_path / file)
    with pytest.raises(InputError, match=f"rewards.{reward}.tokenizer isn't the model's: .*has 60; name a folder that"):
        Scorers({reward: RewardSettings(pretrained=str(tmp_path))})


def test_a_published_vocabulary_is_known_by_its_tokens() -> None:
    cat = SimpleNamespace(input_ids=[49406, 320, 1125, 539, 320, 2368, 49407])
    clip.check_tokenizer("hps", lambda text: cat, 49408, 49407)
    other = OfAnother(49408, 49406, 49407)
    with pytest.raises(InputError, match="rewards.hps.tokenizer isn't the model's"):
        clip.check_tokenizer("hps", other, 49408, 49407)


def test_the_aesthetic_predictor_is_linear_over_unit_features(clip_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    linear, dropout = torch.nn.Linear, torch.nn.Dropout(0.2)
    layers = torch.nn.Sequential(linear(24, 16), dropout, linear(16, 8), dropout, linear(8, 4), linear(4, 1)).eval()
    file = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save({f"layers.{name}": value for name, value in layers.state_dict().items()}, file)
    media = pictures(40, 64)
    seen, _, _ = features(clip_folder, media)
    expected = layers(torch.nn.functional.normalize(seen, dim=-1)).squeeze(-1).detach().numpy()
    settings = RewardSettings(pretrained=str(file), backbone=str(clip_folder))
    np.testing.assert_allclose(scores("aesthetic", settings, media), expected, atol=1e-3)


def test_a_clip_scores_as_the_mean_of_its_frames(clip_folder: Path) -> None:
    media, settings = pictures(40, 64), RewardSettings(pretrained=str(clip_folder))
    for reward in ("pick_score", "jpeg_compressibility", "ocr"):
        alone = scores(reward, settings, media, ["123"] * 4)
        clips = scores(reward, settings, media.reshape(2, 2, *media.shape[1:]), ["123"] * 2)
        np.testing.assert_allclose(clips, alone.reshape(2, 2).mean(axis=1), atol=1e-4)


def test_a_prompt_goes_through_the_text_tower_once(clip_folder: Path) -> None:
    towers = clip._from_folder("pick_score", RewardSettings(pretrained=str(clip_folder)))
    rows: list[int] = []
    towers._model.text_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = towers.prompts(["1", "2", "1", "1"])
    assert rows == [2]
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1])


def test_compressibility_is_the_size_of_the_file() -> None:
    media = pictures(40, 64)
    media[1] = 128
    with io.BytesIO() as file:
        Image.fromarray(media[0]).save(file, format="JPEG", quality=95)
        kilobytes = len(file.getvalue()) / 1000
    rewards = {"jpeg_compressibility": RewardSettings(), "jpeg_incompressibility": RewardSettings()}
    scorers = Scorers(rewards)
    assert len(scorers._models) == 1
    found = scorers.score(ScoreRequest(Media(media), PROMPTS, list(rewards))).scores
    assert found["jpeg_compressibility"][0] == -kilobytes
    assert found["jpeg_compressibility"][1] > found["jpeg_compressibility"][0]
    np.testing.assert_array_equal(found["jpeg_incompressibility"], -found["jpeg_compressibility"])


@pytest.mark.parametrize(
    ("reward", "settings", "message"),
    [
        ("hps", {}, "rewards.hps.pretrained is None; it must be HPS_v2.1_compressed.pt, or the folder with it"),
        ("clip_score", {"pretrained": "/nowhere"}, "rewards.clip_score.pretrained is '/nowhere'; it must be the fold"),
        ("image_reward", {"pretrained": "/nowhere"}, "it must be ImageReward.pt, or the folder with it"),
        ("far", {"url": "host:80"}, "rewards.far.url is 'host:80'; it must begin with http:// or https://"),
        ("own", {"function": "nowhere:f"}, "rewards.own.function is 'nowhere:f', which can't be imported"),
    ],
)
def test_what_is_missing_is_named(reward: str, settings: dict[str, str], message: str) -> None:
    """Before a run, and when it is loaded."""
    with pytest.raises(InputError, match=message):
        check_source(reward, RewardSettings(**settings))
    with pytest.raises(InputError, match=message):
        Scorers({reward: RewardSettings(**settings)})


@pytest.mark.parametrize("reward", SCORERS)
def test_files_are_checked_before_a_run(reward: str) -> None:
    """Also those of weights whose tokenizer lies elsewhere."""
    settings = RewardSettings(pretrained="/nowhere", tokenizer="/nowhere", backbone="/nowhere")
    if reward.startswith(("jpeg", "ocr", "shapes")):
        check_source(reward, settings)
        return
    with pytest.raises(InputError, match=f"rewards.{reward}.pretrained is '/nowhere'"):
        check_source(reward, settings)


@pytest.mark.parametrize(
    ("reward", "whose"), [("clip_score", "CLIP's"), ("hps", "CLIP's"), ("image_reward", "bert-base-uncased's")]
)
def test_missing_tokenizer_is_told_with_its_model(reward: str, whose: str, tmp_path: Path, clip_folder: Path) -> None:
    """Also where transformers would make one that knows no words."""
    folder = shutil.copytree(clip_folder, tmp_path / "folder", ignore=shutil.ignore_patterns("tokenizer*"))
    (folder / PUBLISHED.get(reward, "unused")).touch()
    told = f"no tokenizer is in '{folder}'; name a folder that has {whose} with rewards.{reward}.tokenizer: its vocab"
    with pytest.raises(InputError, match=told):
        check_source(reward, RewardSettings(pretrained=str(folder)))


def test_weights_that_hold_code_are_refused(tmp_path: Path, clip_folder: Path) -> None:
    torch.save({"state_dict": {"x": Path("/")}}, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(InputError, match="[Ww]eights only"):
        Scorers({"hps": RewardSettings(pretrained=str(tmp_path), tokenizer=str(clip_folder))})


@pytest.mark.parametrize("reward", ["hps", "image_reward", "aesthetic"])
def test_other_weights_under_the_right_name_are_refused(reward: str, tmp_path: Path, clip_folder: Path) -> None:
    torch.save({"x.weight": torch.zeros(2)}, tmp_path / PUBLISHED[reward])
    folder = str(clip_folder)
    settings = RewardSettings(pretrained=str(tmp_path), tokenizer=folder, backbone=folder)
    with pytest.raises(InputError, match=f"rewards.{reward}.pretrained is '.*', which doesn't hold the weights of"):
        Scorers({reward: settings})


def first_part(content: object, keep: float) -> bytes:
    """The first part of a PyTorch file with `content`."""
    torch.save(content, file := io.BytesIO())
    return file.getvalue()[: int(keep * len(file.getvalue()))]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it can't be read .EOFError"),
        (first_part({"x": torch.zeros(99)}, 0.5), "it can't be read"),
        (b"version https://git-lfs.github.com/spec/v1", "it can't be read"),
        (first_part([torch.zeros(2)], 1), "it holds a list"),
        (first_part({"state_dict": [torch.zeros(2)]}, 1), "it holds a list"),
        (first_part({0: torch.zeros(2)}, 1), "it holds a dict; it must hold tensors by name"),
        (first_part({"x": 3}, 1), "it holds a dict; it must hold tensors by name"),
    ],
    ids=["empty", "cut", "a pointer", "a list", "a list within", "a place", "a number"],
)
def test_damaged_weights_are_told_with_their_file(content: bytes, why: str, tmp_path: Path, clip_folder: Path) -> None:
    file = tmp_path / PUBLISHED["hps"]
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"rewards.hps.pretrained is '{file}', which doesn't hold .*: {why}"):
        Scorers({"hps": RewardSettings(pretrained=str(file), tokenizer=str(clip_folder))})


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_damaged_safetensors_are_told(keep: int, tmp_path: Path, clip_folder: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=f"rewards.clip_score.pretrained is '{folder}', whose safetensors are damaged"):
        Scorers({"clip_score": RewardSettings(pretrained=str(folder))})
    with pytest.raises(InputError, match="it can't be read .SafetensorError"), clip.published("hps_v3", file):
        clip.read_weights(file)


def test_a_folder_of_another_model_is_no_clip(tmp_path: Path, clip_folder: Path) -> None:
    """Of which transformers would fill in random weights."""
    T5EncoderModel(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path
    )
    settings = RewardSettings(pretrained=str(tmp_path), tokenizer=str(clip_folder))
    for load in (clip.check_files, lambda reward, settings: Scorers({reward: settings})):
        with pytest.raises(InputError, match="rewards.clip_score.pretrained is '.*'; it must be the folder of a CLIP"):
            load("clip_score", settings)


def test_an_own_function_scores_batches() -> None:
    media = pictures(8, 8)
    found = scores("shade", RewardSettings(function="support:shade"), media)
    np.testing.assert_allclose(found, media.mean(axis=(1, 2, 3)))


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16])
def test_a_model_computes_in_float32_whatever_it_is_kept_in(
    kept: torch.dtype, clip_folder: Path, tmp_path: Path
) -> None:
    CLIPModel.from_pretrained(clip_folder).to(kept).save_pretrained(tmp_path)
    model = load_whole(CLIPModel, "pick_score", tmp_path, "pretrained", "clip")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    rounded = CLIPModel.from_pretrained(clip_folder).to(kept).float()
    for name, weight in rounded.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), weight, atol=0, rtol=0)
