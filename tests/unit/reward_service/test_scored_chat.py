"""Vision-language models with a head, against transformers' own classes, called as their authors call them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.pictures import Picture
from branchgrpo.proto.prompts import Prompt
from branchgrpo.proto.scoring import ScoreRequest
from branchgrpo.proto.settings import RewardSettings
from branchgrpo.reward_service import scored_chat
from branchgrpo.reward_service.scored_chat import TOKEN, TRAINED
from branchgrpo.reward_service.scorers import Scorers, check_source
from PIL import Image
from safetensors.torch import save_file
from support import scores
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

OWN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
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


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the tokens that Qwen-VL has for chats."""
    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_alone = Tokenizer(models.BPE(vocabulary, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, pad_token=OWN_TOKENS[0])
    made.add_tokens(list(OWN_TOKENS), special_tokens=True)
    made.chat_template = CHAT
    return made


def random_model(reward: str, entries: int, picture: int) -> Any:
    text = {"vocab_size": entries, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    eyes: dict[str, Any] = {"depth": 2, "num_heads": 2}
    torch.manual_seed(3)
    if reward == "hps_v3":
        eyes |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
        model: Any = Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config=text, vision_config=eyes, image_token_id=picture)
        )
    else:
        eyes |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(text_config=text, vision_config=eyes, image_token_id=picture)
        )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def head() -> torch.nn.Sequential:
    relu, drop = torch.nn.ReLU, torch.nn.Dropout
    layers = [torch.nn.Linear(*size) for size in ((32, 64), (64, 16), (16, 2))]
    return torch.nn.Sequential(layers[0], relu(), drop(0.05), layers[1], relu(), layers[2]).eval()


def fitted(height: int, width: int, area: int) -> tuple[int, int]:
    """Sides in whole pairs of patches with about an area, as the package qwen-vl-utils has it."""
    sides = [max(28, 28 * round(side / 28)) for side in (height, width)]
    stretch = math.sqrt(area / (height * width))
    if math.prod(sides) > area:
        sides = [28 * math.floor(side * stretch / 28) for side in (height, width)]
    elif math.prod(sides) < area:
        sides = [28 * math.ceil(side * stretch / 28) for side in (height, width)]
    return sides[0], sides[1]


def by_authors(
    model: Any, heads: list[torch.nn.Sequential], words: Any, questions: list[str], images: list[Image.Image], side: int
) -> float:
    """One score: the visual tower's features take the places of the pictures' tokens, and positions aren't given."""
    eyes, means = Qwen2VLImageProcessorPil(), []
    sizes = [fitted(image.height, image.width, side**2) for image in images]
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


def as_before(name: str) -> str:
    """A weight's name in transformers up to 4.51."""
    for today, before in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        if name.startswith(today):
            return before + name.removeprefix(today)
    return name


@pytest.fixture(scope="module", params=["hps_v3", "edit_reward"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A reward, its settings, model, heads and tokenizer, as published, but small and random."""
    reward, folder = request.param, tmp_path_factory.mktemp(request.param)
    words = tokenizer()
    words.save_pretrained(folder / "backbone")
    words.add_tokens([TOKEN], special_tokens=True)
    model = random_model(reward, len(words), words.convert_tokens_to_ids("<|image_pad|>"))
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
