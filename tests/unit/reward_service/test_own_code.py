"""Functions and scorers of the user's own: what they raise is told with its place, and what they write harms nobody."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.prompt import Prompt
from branchgrpo.proto.scoring import NotScored, ScoreReply, ScoreRequest
from branchgrpo.proto.settings import RewardPoolSettings, RewardSettings
from branchgrpo.reward_service.replica import Replica
from branchgrpo.reward_service.scorers import Scorers
from support import at_once

CODE = """
import numpy as np

def writes(media, prompts):
    media[:] = 0
    prompts[0].fields["seen"] = True
    prompts.reverse()
    return media.mean(axis=(1, 2, 3))

def mean(media, prompts):
    assert "seen" not in prompts[0].fields
    return [float(picture.mean()) for picture in media]

def first_prompt(media, prompts):
    return [float(prompt == "first") for prompt in prompts]

def typo(media, prompts):
    return helper(media)

def helper(media):
    return media.mean() / undefined

def of_numpy(media, prompts):
    return np.concatenate([media, media[..., :2]])

def away(media, prompts):
    raise ConnectionError("the judge is away")

def full(media, prompts):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

def of_a_library(media, prompts):
    raise type("TooManyRequests", (Exception,), {"__module__": "judge.client"})("slow down")

def refuses(media, prompts):
    from branchgrpo.proto.errors import InputError
    raise InputError("wants portraits")

def one(media, prompts):
    return media[:1].mean(axis=(1, 2, 3))

def nothing(media, prompts):
    pass

def text(media, prompts):
    return ["good"] * len(media)

def bad_666(media, prompts):
    if "666" in prompts:
        raise KeyError("666")
    return np.ones(len(media))

def load(threads):
    return lambda media, prompts: {"x": [0.5] * len(media)}

def load_broken(threads):
    return undefined
"""
PROMPTS = [Prompt("first", {"text": "1"}), Prompt("second"), Prompt("third")]
MEDIA = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RewardSettings]:
    (tmp_path / "own_rewards.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
    return lambda name: RewardSettings(function=f"own_rewards:{name}")


@pytest.mark.parametrize("read_only", [False, True])
def test_what_a_reward_writes_no_other_reward_sees(own: Callable[[str], RewardSettings], read_only: bool) -> None:
    media = MEDIA.copy()
    media.flags.writeable = not read_only
    rewards = {name: own(name) for name in ("writes", "mean", "first_prompt")}
    found = Scorers(rewards).score(ScoreRequest(Media(media), PROMPTS, list(rewards))).scores
    assert found["writes"].tolist() == [0, 0, 0]
    assert found["mean"] == pytest.approx(MEDIA.mean(axis=(1, 2, 3)))
    assert found["first_prompt"].tolist() == [1, 0, 0]
    assert (media == MEDIA).all()
    assert PROMPTS[0].fields == {"text": "1"}


@pytest.mark.parametrize(
    ("name", "message", "final"),
    [
        ("typo", r"raised NameError: name 'undefined' is not defined \(.*own_rewards.py, line 21\)\nTraceback", True),
        ("of_numpy", r"raised ValueError: all the input array dimensions .*own_rewards.py, line 24\)\nTrace", True),
        ("away", r"raised ConnectionError: the judge is away \(.*own_rewards.py, line 27\)\nTraceback", False),
        ("full", "raised RuntimeError: CUDA out of memory", False),
        ("of_a_library", "raised TooManyRequests: slow down", False),
        ("one", r"reward 'one' gave \(1,\) scores for 3 pictures", True),
        ("nothing", r"reward 'nothing' gave \(\) scores for 3 pictures", True),
        ("text", "raised ValueError: could not convert string to float: 'good'", True),
    ],
)
def test_what_it_raises_is_told_with_its_place(
    own: Callable[[str], RewardSettings], name: str, message: str, final: bool
) -> None:
    with pytest.raises(NotScored, match=message) as told:
        Scorers({name: own(name)}).score(ScoreRequest(Media(MEDIA), PROMPTS, [name]))
    assert told.value.final == final
    assert "own_code.py" not in str(told.value)


def test_an_input_error_stays_one(own: Callable[[str], RewardSettings]) -> None:
    with pytest.raises(InputError, match="^wants portraits$"):
        Scorers({"refuses": own("refuses")}).score(ScoreRequest(Media(MEDIA), PROMPTS, ["refuses"]))


def test_a_scorer_is_loaded_or_its_failure_told(own: Callable[[str], RewardSettings]) -> None:
    found = Scorers({"x": RewardSettings(scorer="own_rewards:load")}).score(ScoreRequest(Media(MEDIA), PROMPTS, ["x"]))
    assert found.scores["x"].tolist() == [0.5] * 3
    with pytest.raises(NotScored, match=r"rewards.x.scorer 'own_rewards:load_broken' raised NameError: .*line 57\)"):
        Scorers({"x": RewardSettings(scorer="own_rewards:load_broken")})


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import not_a_package", "No module named 'not_a_package'"),
        ("def broken(:", "SyntaxError: invalid syntax"),
        ("x = 1\ny = x.z", "AttributeError: 'int' object has no attribute 'z'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_fails_to_import_is_named_with_the_reason(
    code: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_rewards.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_rewards", raising=False)
    with pytest.raises(InputError, match=f"rewards.x.function is 'broken_rewards:f', which can't be .*{reason}"):
        Scorers({"x": RewardSettings(function="broken_rewards:f")})


def test_one_request_that_cannot_be_scored_spoils_no_other(own: Callable[[str], RewardSettings]) -> None:
    replica = Replica("x", {"x": own("bad_666")}, RewardPoolSettings())
    first, second, third = at_once(replica.score(Media(MEDIA), [prompt] * 3, prompt) for prompt in ("1", "666", "2"))
    assert isinstance(first, ScoreReply)
    assert isinstance(third, ScoreReply)
    assert isinstance(second, NotScored)
    assert second.final
    assert "KeyError: '666'" in str(second)
