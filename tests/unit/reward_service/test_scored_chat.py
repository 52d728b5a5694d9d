"""Vision-language models with a head, against transformers' own classes, called as their authors call them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.pictures import Picture
from branchgrpo.proto.prompt import Prompt
from branchgrpo.proto.scoring import ScoreRequest
from branchgrpo.proto.settings import RewardSettings
from branchgrpo.reward_service import scored_chat
from branchgrpo.reward_service.scored_chat import TOKEN, TRAINED
from branchgrpo.reward_service.scorers import Scorers, check_source
from PIL import Image
from qwen_vl import as_before, fitted, random_model, tokenizer
from safetensors.torch import save_file
from support import scores
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

END = f"\nRate it: {TOKEN}\n\nEND\n"
TEXTS = {
    "data_collator_qwen.py": {"INSTRUCTION": "Is it good?\nPrompt: {text_prompt}\n", "prompt_with_special_token": END},
    "prompts.py": {
        "INSTRUCTION_EDIT_FOLLOWING": "Was this done: {text_prompt}?",
        "INSTRUCTION_EDIT_QUALITY": "How well was this done: {text_prompt}?",
    },
    "data_collator_qwen_edit.py": {"prompt_with_special_token": END},
}
QUESTIONS = {
    "hps_v3": [f"Is it good?\nPrompt: {{text_prompt}}\n{END}"],
    "edit_reward": [f"Was this done: {{text_prompt}}?{END}", f"How well was this done: {{text_prompt}}?{END}"],
}


def head() -> torch.nn.Sequential:
    relu, drop = torch.nn.ReLU, torch.nn.Dropout
    layers = [torch.nn.Linear(*size) for size in ((32, 64), (64, 16), (16, 2))]
    return torch.nn.Sequential(layers[0], relu(), drop(0.05), layers[1], relu(), layers[2]).eval()


def by_authors(
    model: Any, heads: list[torch.nn.Sequential], words: Any, questions: list[str], images: list[Image.Image], side: int
) -> float:
    """One score: the visual tower's features take the places of the pictures' tokens, and positions aren't given."""
    eyes, means = Qwen2VLImageProcessorPil(), []
    sizes = [fitted(image.height, image.width, side**2, side**2) for image in images]
    shown = [image.resize(size[::-1], Image.Resampling.BICUBIC) for image, size in zip(images, sizes, strict=True)]
    seen = eyes(shown, return_tensors="pt")
    patches = [int(grid.prod()) // 4 for grid in seen.image_grid_thw]
    for question, own in zip(questions, heads, strict=True):
        pictures = "".join(f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>" for count in patches)
        chat = f"<|im_start|>user\n{pictures}{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = words(chat, return_tensors="pt").input_ids
        with torch.no_grad():
            embedded = model.get_input_embeddings()(ids)
            features = model.model.visual(seen.pixel_values, grid_thw=seen.image_grid_thw).pooler_output
            places = (ids == model.config.image_token_id)[..., None].expand_as(embedded)
            embedded = embedded.masked_scatter(places, features)
            states = model.model(input_ids=None, inputs_embeds=embedded, attention_mask=torch.ones_like(ids))[0]
            means.append(own(states[ids == words.convert_tokens_to_ids(TOKEN)])[0, 0].item())
    return float(np.mean(means))


@pytest.fixture(scope="module", params=["hps_v3", "edit_reward"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A reward, its settings, model, heads and tokenizer, as published, but small and random."""
    reward, folder = request.param, tmp_path_factory.mktemp(request.param)
    words = tokenizer()
    words.save_pretrained(folder / "backbone")
    words.add_tokens([TOKEN], special_tokens=True)
    kind = TRAINED[reward].backbone.config_class.model_type
    model = random_model(kind, len(words), words.convert_tokens_to_ids("<|image_pad|>"))
    model.config.save_pretrained(folder / "backbone")
    heads = [head() for _ in TRAINED[reward].heads]
    weights = dict(model.state_dict())
    for prefix, own in zip(TRAINED[reward].heads, heads, strict=True):
        weights |= {prefix + name: weight for name, weight in own.state_dict().items()}
    (folder / "dataset").mkdir()
    for file in TRAINED[reward].files:
        lines = [f"{name} = {text!r}" for name, text in TEXTS[file].items()]
        (folder / "dataset" / file).write_text("\n".join(["import not_installed", *lines, "def f(): pass"]))
    name = "HPSv3.safetensors" if reward == "hps_v3" else "model.safetensors"
    for layout, renamed in (("today", str), ("before", as_before)):
        (folder / layout).mkdir()
        save_file({renamed(n): weight.clone() for n, weight in weights.items()}, folder / layout / name)
    settings = RewardSettings(
        pretrained=str(folder / "today"), backbone=str(folder / "backbone"), instruction=str(folder / "dataset")
    )
    return reward, settings, model, heads, words


def prompts_for(reward: str, shape: tuple[int, int]) -> list[Prompt]:
    rng, texts = np.random.default_rng(5), ["a {red} cat", "a much longer prompt, über alles"]
    pictures = [Picture(text, rng.integers(0, 256, (*shape, 3), np.uint8)) for text in texts]
    return [
        Prompt(text, {}, [one] if reward == "edit_reward" else []) for text, one in zip(texts, pictures, strict=True)
    ]


@pytest.mark.parametrize(
    ("layout", "side", "shapes"),
    [("today", 448, [(60, 90)]), ("before", 112, [(90, 60), (112, 112), (20, 300), (27, 57)])],
)
def test_scores_are_those_of_the_authors_forward_pass(
    made: Any, layout: str, side: int, shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With prompts of different lengths, pictures of any shape, and both layouts of the weights."""
    reward, settings, model, heads, words = made
    monkeypatch.setattr(scored_chat, "SIDE", side)
    settings = settings.model_copy(update={"pretrained": settings.pretrained.replace("today", layout)})
    scorer = Scorers({reward: settings})
    for shape in shapes:
        prompts = prompts_for(reward, shape)
        media = np.random.default_rng(shape[0]).integers(0, 256, (2, *shape, 3), np.uint8)
        found = scorer.score(ScoreRequest(Media(media), prompts, [reward])).scores[reward]
        for score, picture, prompt in zip(found, media, prompts, strict=True):
            images = [Image.fromarray(one.pixels()) for one in prompt.pictures] + [Image.fromarray(picture)]
            questions = [question.format(text_prompt=prompt) for question in QUESTIONS[reward]]
            assert score == pytest.approx(by_authors(model, heads, words, questions, images, side), abs=1e-5)


def test_files_are_checked_before_weights_are_read(made: Any, tmp_path: Path) -> None:
    reward, settings, *_ = made
    check_source(reward, settings)
    for setting, named in (
        ("backbone", "says 'qwen2"),
        ("instruction", "the folder 'dataset'"),
        ("pretrained", "must"),
    ):
        with pytest.raises(InputError, match=rf"rewards.{reward}.{setting} is .*{named}"):
            check_source(reward, settings.model_copy(update={setting: str(tmp_path)}))
    for file in TRAINED[reward].files:
        (tmp_path / file).write_text("x = 1")
    with pytest.raises(InputError, match="whose files lack 'INSTRUCTION"):
        check_source(reward, settings.model_copy(update={"instruction": str(tmp_path)}))
    for content in (b"x = (", b"x = '\xff'", b"x = '\0'"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(InputError, match=rf"{reward}.instruction is .*, whose {file} can't be read: "):
            check_source(reward, settings.model_copy(update={"instruction": str(tmp_path)}))


def test_weights_of_another_model_are_refused(made: Any, tmp_path: Path) -> None:
    reward, settings, *_ = made
    name = next(Path(settings.pretrained).iterdir()).name
    save_file({"rm_head.0.weight": torch.zeros(2, 2)}, tmp_path / name)
    with pytest.raises(InputError, match=f"doesn't hold the weights of {name}"):
        scores(
            reward, settings.model_copy(update={"pretrained": str(tmp_path)}), np.zeros((1, 28, 28, 3), np.uint8), ["a"]
        )


def test_prompts_that_break_the_question_are_refused(made: Any) -> None:
    reward, settings, *_ = made
    media, (prompt, _) = np.zeros((1, 28, 28, 3), np.uint8), prompts_for(reward, (28, 28))
    for text in (TOKEN, "<|image_pad|>"):
        with pytest.raises(InputError, match="a prompt has one of the tokens"):
            scores(reward, settings, media, [Prompt(f"a {text}", {}, prompt.pictures)])
    if reward == "edit_reward":
        with pytest.raises(InputError, match="compares with the picture that a prompt comes with"):
            scores(reward, settings, media, ["a"])


def test_edits_need_prompts_with_pictures(run_settings: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"edit_reward compares with .*prompts.picture_column is null"):
        run_settings({"rewards": {"edit_reward": {}}})
