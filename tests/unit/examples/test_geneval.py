"""The example that scores as GenEval: its rules by known answers, and the whole on small random models."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.prompt import Prompt
from branchgrpo.reward_service.own_code import OwnScorer
from branchgrpo.rollout_workers.glyphs.pretrain import character_tokenizer
from transformers import (
    BatchEncoding,
    CLIPConfig,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

PATH = Path(__file__).parents[3] / "examples" / "geneval.py"


@pytest.fixture(scope="module")
def geneval() -> Any:
    spec = importlib.util.spec_from_file_location("geneval_example", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def found(geneval: Any, name: str, left: int, top: int, confidence: float = 0.9) -> Any:
    """A square of ten pixels."""
    mask = np.zeros((100, 100), bool)
    mask[top : top + 10, left : left + 10] = True
    return geneval.Found(name, confidence, mask)


@pytest.mark.parametrize(
    ("left", "top", "expected"),
    [
        (80, 40, {"right of"}),
        (10, 40, {"left of"}),
        (45, 5, {"above"}),
        (45, 90, {"below"}),
        (80, 80, {"right of", "below"}),
        (46, 46, set()),
        (75, 55, {"right of"}),
    ],
)
def test_sides_are_told_from_centres(geneval: Any, left: int, top: int, expected: set[str]) -> None:
    assert geneval.sides(found(geneval, "a", left, top).box, found(geneval, "b", 45, 45).box) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"include": [{"class": "dog", "count": 1}]}, [True]),
        ({"include": [{"class": "dog", "count": 3}]}, [False]),
        ({"include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]}, [True, True]),
        ({"include": [{"class": "dog", "count": 1}], "exclude": [{"class": "dog", "count": 2}]}, [True, False]),
        ({"include": [{"class": "dog", "count": 2, "color": "red"}]}, [False]),
        ({"include": [{"class": "cat", "count": 1, "color": "blue"}]}, [True]),
        (
            {"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]},
            [True, True],
        ),
        (
            {"include": [{"class": "cow", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}]},
            [False, False],
        ),
    ],
)
def test_claims_hold_as_in_the_benchmark(geneval: Any, wanted: dict[str, Any], expected: list[bool]) -> None:
    objects = {
        "dog": [found(geneval, "dog", 10, 40), found(geneval, "dog", 10, 80)],
        "cat": [found(geneval, "cat", 80, 40)],
    }
    named = {"dog": ["red", "green"], "cat": ["blue"]}
    assert geneval.claims(objects, wanted, lambda own, name: named[name][: len(own)]) == expected


def test_colours_are_looked_at_one_by_one_on_grey(geneval: Any) -> None:
    seen = []

    class Towers:
        def prompts(self, phrases: list[str]) -> torch.Tensor:
            return torch.eye(10).repeat_interleave(len(phrases) // 10, dim=0)

        def pictures(self, media: np.ndarray) -> torch.Tensor:
            seen.append(media)
            return torch.eye(10)[[4]]

    picture = np.random.default_rng(0).integers(0, 100, (100, 100, 3), np.uint8)
    one = geneval.Found("dog", 0.9, np.eye(100, dtype=bool))
    assert geneval.GenEval(None, None, Towers()).colours(picture, [one], "dog") == ["blue"]
    np.testing.assert_array_equal(seen[0][0][np.eye(100, dtype=bool)], picture[np.eye(100, dtype=bool)])
    assert (seen[0][0][~np.eye(100, dtype=bool)] == geneval.GREY).all()


@pytest.mark.parametrize(
    ("label", "asked"),
    [
        ("mouse", "computer mouse"),
        ("remote", "tv remote"),
        ("keyboard", "computer keyboard"),
        ("motorbike", "motorcycle"),
        ("aeroplane", "airplane"),
        ("sofa", "couch"),
        ("pottedplant", "potted plant"),
        ("diningtable", "dining table"),
        ("tvmonitor", "tv"),
        ("Zebra", "zebra"),
        ("mouse", "mouse"),
    ],
)
def test_the_detector_s_own_names_are_understood(geneval: Any, label: str, asked: str) -> None:
    class Detector:
        device = "cpu"
        config = SimpleNamespace(id2label={0: "dog", 1: label})

        def __call__(self, **inputs: Any) -> None:
            pass

    class Eyes:
        def __call__(self, image: Any, return_tensors: str) -> BatchEncoding:
            return BatchEncoding()

        def post_process_instance_segmentation(self, *ignored: Any, **options: Any) -> list[dict[str, Any]]:
            return [{"segments_info": [{"label_id": 1, "score": 0.9}], "segmentation": torch.ones(1, 10, 10)}]

    scorer, media = geneval.GenEval(Detector(), Eyes(), None), np.zeros((1, 10, 10, 3), np.uint8)
    for claimed in (
        {"include": [{"class": asked, "count": 1}]},
        {"include": [{"class": asked, "count": 1}], "exclude": [{"class": asked, "count": 2}]},
    ):
        assert scorer(media, [Prompt("a photo", claimed)])["geneval"] == [1.0]
    for part in ("include", "exclude"):
        unknown = {"include": [{"class": asked, "count": 1}]} | {part: [{"class": "unicorn", "count": 1}]}
        with pytest.raises(InputError, match="detector doesn't know the class 'unicorn' of the prompt 'a photo'"):
            scorer(media, [Prompt("a photo", unknown)])


def test_it_scores_with_small_random_models(geneval: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = character_tokenizer()
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {**small, "image_size": 28, "patch_size": 14}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    swin = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        id2label={0: "dog", 1: "cat"},
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path / "detector")
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "detector")
    monkeypatch.setenv("GENEVAL_DETECTOR", str(tmp_path / "detector"))
    monkeypatch.setenv("GENEVAL_CLIP", str(tmp_path / "clip"))
    monkeypatch.setattr(geneval, "MIN_CONFIDENCE", 0.0)
    scorer = OwnScorer("geneval", "rewards.geneval.scorer", geneval.load())
    media = Media(np.random.default_rng(1).integers(0, 256, (2, 40, 60, 3), np.uint8))
    wanted = [{"include": [{"class": "dog", "count": count, "color": "red"}]} for count in (1, 99)]
    scores = scorer(media, [Prompt("a dog", wanted[0]), Prompt("99 dogs", wanted[1])])
    assert scores.keys() == {"geneval", "geneval_exact"}
    assert scores["geneval"][1] == scores["geneval_exact"][1] == 0
    found = geneval.load().detected(media.pictures[0], 0.0)
    assert found
    assert found.keys() <= {"dog", "cat"}
    assert all(one.mask.shape == (40, 60) for objects in found.values() for one in objects)
    with pytest.raises(InputError, match="geneval needs prompts with the field 'include'"):
        scorer(media, ["a dog", "a cow"])
