"""VideoAlign against transformers' and PEFT's own classes, called as its authors call them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.scoring import ScoreRequest
from branchgrpo.proto.settings import RewardSettings
from branchgrpo.reward_service import video_align
from branchgrpo.reward_service.scorers import Scorers, check_source
from branchgrpo.reward_service.video_align import TOKENS, frames_shown
from PIL import Image
from qwen_vl import as_before, fitted, random_model, tokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

REWARDS = ["video_align", "video_align_visual", "video_align_motion", "video_align_text"]
QUESTION = (
    f"\nRate the looks: {TOKENS[0]}\nthe motion: {TOKENS[1]}\nPrompt - {{text_prompt}}\nand likeness: {TOKENS[2]}"
)
SCALE = {"VQ_mean": 3.5, "VQ_std": 2.25, "MQ_mean": 1.25, "MQ_std": 1.5, "TA_mean": 2.75, "TA_std": 2.5}
LEAST, MOST = 2 * 28**2, 6 * 28**2
"""Pixels of a frame, of which the published model is shown 64 and 33 times as many."""
PEFT = "base_model.model."


def saved(folder: Path, ratings: int = 1, **lora: Any) -> tuple[RewardSettings, Any, torch.Tensor, Any]:
    """Files as published, of a small random model under a LoRA, its head of so many ratings, and its tokenizer."""
    words = tokenizer()
    words.save_pretrained(folder / "backbone")
    words.add_tokens(TOKENS, special_tokens=True)
    model = random_model("qwen2_vl", len(words), words.convert_tokens_to_ids("<|image_pad|>"))
    model.config.save_pretrained(folder / "backbone")
    linear = r".*language_model\.layers.*_proj"
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=linear, r=4, lora_alpha=6, **lora)).eval()
    head = torch.randn(ratings, 32)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    weights = {PEFT + as_before(name.removeprefix(PEFT)): weight for name, weight in adapted.state_dict().items()}
    (folder / "checkpoint-11352").mkdir(parents=True)
    torch.save(weights | {f"{PEFT}rm_head.weight": head}, folder / "checkpoint-11352" / "model.pth")
    shown = {"fps": 2.0, "max_frame_pixels": MOST, "num_frames": None, "prompt_template_type": "detailed_special"}
    config = {"data_config": shown, "peft_lora_config": {"lora_alpha": 6, **lora}, "inference_config": SCALE}
    (folder / "model_config.json").write_text(json.dumps(config))
    (folder / "prompt_template.py").write_text(f"DETAILED_PROMPT_WITH_SPECIAL_TOKEN = {QUESTION!r}\n")
    settings = RewardSettings(
        pretrained=str(folder), backbone=str(folder / "backbone"), instruction=str(folder), weight=1.0
    )
    return settings, adapted, head, words


def patches_of(frames: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip in pairs of frames, and squares of four patches, as Qwen2-VL reads it."""
    height, width = fitted(*frames.shape[1:3], LEAST, MOST)
    sized = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
    normal = (np.stack([np.asarray(frame) for frame in sized]) / 255 - OPENAI_CLIP_MEAN) / OPENAI_CLIP_STD
    patches = [
        normal[pair : pair + 2, top + y : top + y + 14, left + x : left + x + 14].transpose(3, 0, 1, 2).ravel()
        for pair in range(0, len(frames), 2)
        for top in range(0, height, 28)
        for left in range(0, width, 28)
        for y in (0, 14)
        for x in (0, 14)
    ]
    grid = torch.tensor([[len(frames) // 2, height // 14, width // 14]])
    return torch.tensor(np.stack(patches), dtype=torch.float32), grid


def by_authors(model: Any, head: torch.Tensor, words: Any, frames: np.ndarray, prompt: str) -> np.ndarray:
    """The three ratings: the clip's features take the places of its tokens, and positions aren't given."""
    patches, grid = patches_of(frames)
    clip = f"<|vision_start|>{'<|image_pad|>' * (len(patches) // 4)}<|vision_end|>"
    chat = f"<|im_start|>user\n{clip}{QUESTION.format(text_prompt=prompt)}<|im_end|>\n<|im_start|>assistant\n"
    ids = words(chat, return_tensors="pt").input_ids
    own = model.get_base_model()
    with torch.no_grad():
        embedded = own.get_input_embeddings()(ids)
        features = own.model.visual(patches, grid_thw=grid).pooler_output
        places = (ids == own.config.image_token_id)[..., None].expand_as(embedded)
        embedded = embedded.masked_scatter(places, features)
        states = own.model(input_ids=None, inputs_embeds=embedded, attention_mask=torch.ones_like(ids))[0]
    rated = states[torch.isin(ids, torch.tensor(words.convert_tokens_to_ids(TOKENS)))] @ head.T
    raw = rated.diagonal() if len(head) == 3 else rated[:, 0]
    names = ("VQ", "MQ", "TA")
    return np.array(
        [(one - SCALE[f"{name}_mean"]) / SCALE[f"{name}_std"] for one, name in zip(raw.tolist(), names, strict=True)]
    )


@pytest.mark.parametrize(("ratings", "lora"), [(1, {}), (3, {"use_rslora": True})])
def test_scores_are_those_of_the_authors_forward_pass(
    ratings: int, lora: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With clips of any length, shape and rate, and adapters that stand beside their layers in the second pass."""
    monkeypatch.setattr(video_align, "MIN_PIXELS", LEAST)
    settings, model, head, words = saved(tmp_path, ratings, **lora)
    scorer = Scorers(dict.fromkeys(REWARDS, settings))
    prompts = ["a {red} cat jumps", "a much longer prompt, über alles"]
    for frames, height, width, rate in ((17, 40, 60, 8.0), (2, 90, 30, 16.0), (9, 120, 200, 24.0)):
        clips = np.random.default_rng(frames).integers(0, 256, (2, frames, height, width, 3), np.uint8)
        found = scorer.score(ScoreRequest(Media(clips, frame_rate=rate), prompts, REWARDS)).scores
        for number, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
            wanted = by_authors(model, head, words, clip[frames_shown(frames, rate, 2.0)], prompt)
            own = [found[name][number] for name in REWARDS]
            assert own == pytest.approx([wanted.sum(), *wanted], abs=2e-5)


@pytest.mark.parametrize(
    ("frames", "rate", "shown"),
    [
        (81, 16.0, [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]),  # 5 seconds, two a second
        (33, 16.0, [0, 11, 21, 32]),
        (9, 16.0, [0, 3, 5, 8]),  # at least four
        (3, 16.0, [0, 2]),  # whole pairs
    ],
)
def test_frames_are_shown_in_pairs_from_first_to_last(frames: int, rate: float, shown: list[int]) -> None:
    assert frames_shown(frames, rate, 2.0).tolist() == shown


def test_what_it_cannot_score_is_refused(tmp_path: Path) -> None:
    settings, *_ = saved(tmp_path)
    scorer = Scorers({"video_align": settings})
    for shape, kind in (((1, 28, 28, 3), "picture"), ((1, 1, 28, 28, 3), "clip")):
        with pytest.raises(InputError, match=f"clips of two frames or more, and was given a {kind}"):
            scorer.score(ScoreRequest(Media(np.zeros(shape, np.uint8)), ["a"], ["video_align"]))
    with pytest.raises(InputError, match=r"a prompt has one of the tokens .*<\|TA_reward\|>"):
        clip = Media(np.zeros((1, 2, 28, 28, 3), np.uint8))
        scorer.score(ScoreRequest(clip, [f"a {TOKENS[1]}"], ["video_align"]))


def test_files_are_checked_before_weights_are_read(tmp_path: Path) -> None:
    settings, *_ = saved(tmp_path / "good")
    check_source("video_align_text", settings)
    for setting in ("pretrained", "backbone", "instruction"):
        with pytest.raises(InputError, match=rf"rewards.video_align_text.{setting} is .*it must be"):
            check_source("video_align_text", settings.model_copy(update={setting: str(tmp_path)}))
    config = tmp_path / "good" / "model_config.json"
    config.write_text(config.read_text().replace('"num_frames": null', '"num_frames": 8'))
    with pytest.raises(InputError, match="whose model_config.json says num_frames: 8; it must be None"):
        check_source("video_align", settings)
    for content in ("[]", "{", '{"data_config": 5}', '{"data_config": {"fps": 2.0}}', '{"data_config": {"fps": null}}'):
        config.write_text(content)
        with pytest.raises(InputError, match="whose model_config.json isn't that of KwaiVGI/VideoReward: "):
            check_source("video_align", settings)


def test_a_policy_of_pictures_is_refused(run_settings: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"video_align_motion scores clips of two frames .*policy.frames is 1"):
        run_settings({"rewards": {"video_align_motion": {}}})
