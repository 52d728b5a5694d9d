"""The OCR rewards on pictures whose text is known, and the set of scorers."""

import numpy as np
import pytest
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.prompt import Prompt
from branchgrpo.proto.scoring import ScoreRequest
from branchgrpo.proto.settings import RewardSettings
from branchgrpo.reward_service.ocr import similarity, target
from branchgrpo.reward_service.scorers import Scorers
from PIL import Image, ImageDraw, ImageFont

REWARDS = {"ocr_exact": RewardSettings(), "ocr": RewardSettings()}


def picture(text: str) -> np.ndarray:
    image = Image.new("RGB", (96, 40), "white")
    ImageDraw.Draw(image).text((8, 4), text, fill="black", font=ImageFont.load_default(size=28))
    return np.asarray(image)


def test_known_texts_score_as_they_should() -> None:
    request = ScoreRequest(
        media=Media(np.stack([picture("123"), picture("128"), picture("OPEN"), picture("")])),
        prompts=["123", "123", 'a sign that says "OPEN"', "123"],
        rewards=["ocr", "ocr_exact"],
        id="x",
    )
    reply = Scorers(REWARDS).score(request)
    assert reply.id == "x"
    assert reply.scores["ocr"] == pytest.approx([1, 2 / 3, 1, 0])
    assert reply.scores["ocr_exact"].tolist() == [1, 0, 1, 0]


def test_a_model_that_gives_two_rewards_is_loaded_once() -> None:
    assert len(Scorers(REWARDS)._models) == 1


@pytest.mark.parametrize("own", ["jpeg_compressibility", "jpeg_incompressibility"])
@pytest.mark.parametrize("first", [True, False])
def test_a_model_gives_only_the_rewards_that_are_its(own: str, first: bool) -> None:
    """A function of one's own may have the name of a reward that the model of another one gives too."""
    (other,) = {"jpeg_compressibility", "jpeg_incompressibility"} - {own}
    given = [(own, RewardSettings(function="support:shade")), (other, RewardSettings())]
    scorers = Scorers(dict(given if first else given[::-1]))
    media = Media(np.full((1, 8, 8, 3), 7, np.uint8))
    reply = scorers.score(ScoreRequest(media, ["a"], [own, other]))
    assert reply.scores[own].tolist() == [7.0]
    assert abs(reply.scores[other][0]) < 1


@pytest.mark.parametrize(
    ("read", "wanted", "value"), [("123", "123", 1), ("", "123", 0), ("1", "123", 1 / 3), ("999999", "1", 0)]
)
def test_similarity(read: str, wanted: str, value: float) -> None:
    assert similarity(read, wanted) == pytest.approx(value)


def test_target_is_the_quoted_text_or_all() -> None:
    assert target('the word "a b" on a wall') == "a b"
    assert target(" 042 ") == "042"
    assert target('say " "') == 'say " "'


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a sign that says “OPEN”", "OPEN"),
        ("a sign that says ‘OPEN’", "OPEN"),
        ("the dog’s sign says ‘DON’T WALK’, it’s old", "DON’T WALK"),
        ("the dog's sign says 'DON'T WALK', it's old", "DON'T WALK"),
        ("写着「开」的招牌", "开"),
        ("写着『开』的招牌", "开"),
        ("写着“开”字", "开"),
        ("写着‘开’字", "开"),
        ("写着＂开＂字", "开"),
        ("ein Schild „OFFEN“ an der Tür", "OFFEN"),
        ("ein Schild ‚OFFEN‘ an der Tür", "OFFEN"),
        ("en skylt ”ÖPPET”", "ÖPPET"),
        ("une enseigne « OUVERT »", "OUVERT"),
        ("ein Schild »OFFEN«", "OFFEN"),
        ('"" and " " and "A"', "A"),
        ('a 5" screen that shows "A"', "A"),
        ("“it's” and 'B'", "it's"),
        ("it's the dogs' house, that's", "it's the dogs' house, that's"),
        ("it’s the dogs’ house, that’s", "it’s the dogs’ house, that’s"),
        ("rock 'n' roll", "rock 'n' roll"),
        ("a 'quoted' word", "quoted"),
        ("the '90s", "the '90s"),
    ],
)
def test_quotes_of_all_kinds_mark_the_text(prompt: str, wanted: str) -> None:
    assert target(prompt) == wanted


def test_a_field_of_the_prompt_says_what_is_to_be_read() -> None:
    prompts = [Prompt("a sign in the rain", {"text": "OPEN"}), Prompt("a house number", {"text": 123})]
    media = np.stack([picture("OPEN"), picture("123")])
    reply = Scorers(REWARDS).score(ScoreRequest(Media(media), prompts, ["ocr_exact"]))
    assert reply.scores["ocr_exact"].tolist() == [1, 1]


def test_lines_are_found_in_a_large_picture() -> None:
    image = Image.new("RGB", (512, 512), (90, 140, 200))
    draw = ImageDraw.Draw(image)
    draw.rectangle((120, 180, 400, 380), fill=(250, 250, 240))
    for line, text in enumerate(("HELLO", "WORLD")):
        draw.text((150, 200 + 90 * line), text, font=ImageFont.load_default(size=60), fill=(20, 20, 20))
    media = np.stack([np.asarray(image), np.full((512, 512, 3), 128, np.uint8)])
    request = ScoreRequest(Media(media), ['a sign that says "HELLO WORLD"'] * 2, ["ocr", "ocr_exact"])
    reply = Scorers(REWARDS).score(request)
    assert reply.scores["ocr_exact"].tolist() == [1, 0]
    assert reply.scores["ocr"].tolist() == [1, 0]


def test_target_of_a_long_prompt_takes_no_time() -> None:
    """Minutes, if it were quadratic."""
    for start in "\"'“‘«":
        for more in ("a", " a", " ", " '", "'a", " 'a", "a'", "’a", " ’a", "‘", " “", "« "):
            target(start + more * 10**5)


def test_an_unknown_reward_is_named() -> None:
    with pytest.raises(
        InputError, match="unknown reward 'beauty' in rewards; there are aesthetic, clap, clip_score, edit_reward, hps"
    ):
        Scorers({"ocr": RewardSettings(), "beauty": RewardSettings()})
