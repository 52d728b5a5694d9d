"""A vision-language model as a judge, behind a real server of its API, against the model itself."""

import json
import math
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
from branchgrpo.cluster.commands.check import check
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.train import train
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.prompt import Prompt, pictures_of
from branchgrpo.proto.scoring import NotAnswered, NotScored, ScoreReply
from branchgrpo.proto.settings import RewardPoolSettings, RewardSettings
from branchgrpo.proto.yaml12 import read_yaml
from branchgrpo.reward_service import judge as judges
from branchgrpo.reward_service.interface import PictureScorer
from branchgrpo.reward_service.judge import data_url, number_behind, yes_share
from branchgrpo.reward_service.replica import Replica
from branchgrpo.reward_service.scorers import load_scorer
from families import with_pictures
from judge_endpoint import KEY, NAME, RATED, Endpoint
from published import pictures
from rich.console import Console
from support import RECIPES, Settings, at_once, serving

DOCS = RECIPES.parent / "docs" / "rewards.md"
VARIABLE = "JUDGE_KEY"
PROMPTS = [
    Prompt("a red dog", {"things": ["dog"]}),
    Prompt("a blue cat", {"things": ["cat", "blue"]}),
    Prompt("a cat", {"things": ["cat"]}),
    Prompt("a dog", {"things": ["a", "dog", "red"]}),
]
TEMPLATES = ["Is this {prompt} ?", "Is this {things} ?"]
QUESTIONS = [
    ["Is this a red dog ?", "Is this dog ?"],
    ["Is this a blue cat ?", "Is this cat ?", "Is this blue ?"],
    ["Is this a cat ?", "Is this cat ?"],
    ["Is this a dog ?", "Is this a ?", "Is this dog ?", "Is this red ?"],
]
MEDIA = pictures(24, 40)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Endpoint, str]]:
    endpoint = Endpoint()
    with serving(endpoint.app()) as address:
        yield endpoint, f"{address}v1"


@pytest.fixture
def endpoint(served: tuple[Endpoint, str], monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """The endpoint, asked nothing yet, with its key in the environment, and one of somebody else."""
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    for noted in (served[0].requests, served[0].keys, served[0].failures):
        noted.clear()
    served[0].max_waiting = 0
    return served[0]


@pytest.fixture
def url(served: tuple[Endpoint, str]) -> str:
    return served[1]


def settings(address: str, **changes: Any) -> RewardSettings:
    judge = {"url": address, "model": NAME, "questions": TEMPLATES, "api_key_env": VARIABLE, **changes}
    return RewardSettings.model_validate({"judge": judge})


def judge(url: str, **changes: Any) -> PictureScorer:
    """A judge of pictures and clips as arrays."""
    own = load_scorer("faithful", settings(url, **changes), None)
    return lambda pictures, prompts: own(Media(pictures), prompts)


def replica_of(own: RewardSettings) -> Replica:
    """A replica that was loaded within an event loop, as Ray Serve does it."""

    async def loaded() -> Replica:
        return Replica("faithful", {"faithful": own}, RewardPoolSettings())

    (replica,) = at_once([loaded()])
    return replica


def share_of_yes(endpoint: Endpoint, shown: list[np.ndarray], question: str) -> float:
    """What the model itself says."""
    p = {word: float(p) for word, p in zip(endpoint.words, endpoint.logprobs(shown, question)[0].exp(), strict=True)}
    yes, no = p["yes"] + p["Yes"], p["no"] + p[" NO"]
    return yes / (yes + no)


@pytest.mark.parametrize("combine", ["mean", "min"])
def test_yes_and_no_are_weighed_as_the_model_does(endpoint: Endpoint, url: str, combine: str) -> None:
    found = judge(url, combine=combine)(MEDIA, PROMPTS)["faithful"]
    grades = [[share_of_yes(endpoint, [p], q) for q in asked] for p, asked in zip(MEDIA, QUESTIONS, strict=True)]
    np.testing.assert_allclose(found, [getattr(np, combine)(own) for own in grades], rtol=1e-6)
    assert np.ptp(found) > 0.01


def test_pictures_that_the_policy_started_from_are_shown_first(endpoint: Endpoint, url: str) -> None:
    """They are part of what is asked about: an edit of another picture is another question."""
    prompts = with_pictures(PROMPTS, 2)
    found = judge(url, sources=True, questions=["Is this a dog ?"])(MEDIA[[0] * 4], prompts)["faithful"]
    shown = [[*(np.asarray(one.fitted(24, 40)) for one in pictures_of(prompt)), MEDIA[0]] for prompt in prompts]
    np.testing.assert_allclose(found, [share_of_yes(endpoint, own, "Is this a dog ?") for own in shown], rtol=1e-6)
    assert len(set(found)) == len(endpoint.requests) == 4


def test_leaves_of_a_prompt_are_compared_both_ways(endpoint: Endpoint, url: str) -> None:
    asks = judge(url, opponents=2, questions=["Is this a dog ?"])
    found = asks(MEDIA, [PROMPTS[0]] * 3 + [PROMPTS[1]])["faithful"]
    first = [[share_of_yes(endpoint, [MEDIA[i], MEDIA[j]], "Is this a dog ?") for j in range(3)] for i in range(3)]
    expected = [
        np.mean([share for j in range(3) if j != i for share in (first[i][j], 1 - first[j][i])]) for i in range(3)
    ]
    np.testing.assert_allclose(found, [*expected, 0.5], rtol=1e-6)
    assert len(endpoint.requests) == 6
    assert np.ptp(found) > 0.001


def test_trees_with_the_same_prompt_are_not_compared(endpoint: Endpoint, url: str) -> None:
    replica = replica_of(settings(url, opponents=3, questions=["Is this a dog ?"]))
    halves = [Media(MEDIA[:2]), Media(MEDIA[2:])]
    replies = at_once(replica.score(half, PROMPTS[:1] * 2, id) for half, id in zip(halves, "ab", strict=True))
    assert len(endpoint.requests) == 4
    assert [float(reply.scores["faithful"].sum()) for reply in replies] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    "changes",
    [
        {"top_logprob": 5},
        {"temperature": "0"},
        {"response_format": {"type": "json_schema", "schema": {}}},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}]},
    ],
    ids=["name", "type", "schema", "picture"],
)
def test_the_server_refuses_what_is_not_in_the_api(endpoint: Endpoint, url: str, changes: dict[str, Any]) -> None:
    """So that all other tests hold the judge's requests against the API's types."""
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(MEDIA[0])}}]}
    request = {"model": NAME, "messages": [message], "temperature": 0, "top_logprobs": 5, "logprobs": True}
    statuses = [
        requests.post(f"{url}/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}).status_code
        for body in (request, {**request, **changes})
    ]
    assert statuses == [200, 422]


def test_so_many_questions_wait_at_once(endpoint: Endpoint, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "gate", threading.Barrier(3))
    judge(url, concurrency=3, questions=["Is this a dog ?", "Is this a cat ?", "Is this red ?"])(MEDIA, PROMPTS)
    assert len(endpoint.requests) == 12
    assert endpoint.max_waiting == 3


def test_a_rubric_takes_the_answer_that_the_model_writes(endpoint: Endpoint, url: str) -> None:
    found = judge(url, answer="rubric", scale=[2, 4], questions=["Is this {prompt} ?"])(MEDIA, PROMPTS)["faithful"]
    for picture, prompt, score in zip(MEDIA, PROMPTS, found, strict=True):
        answers = {n: f'{{"score":{n}}}' for n in range(2, 5)}
        best = max(answers, key=lambda n: endpoint.likelihood([picture], f"Is this {prompt} ?", answers[n]))
        assert score == (best - 2) / 2


def test_grades_are_read_behind_their_labels(endpoint: Endpoint, url: str) -> None:
    labels = [f"{word} Score (1-5):" for word in RATED]
    asks = judge(url, answer="text", scale=[1, 5], labels=labels, questions=["Is this {prompt} ?"])
    found = asks(MEDIA, PROMPTS)["faithful"]
    shown = [([picture], f"Is this {prompt} ?") for picture, prompt in zip(MEDIA, PROMPTS, strict=True)]
    ratings = [np.mean([endpoint.rating(*own, word) for word in RATED]) for own in shown]
    np.testing.assert_allclose(found, (np.array(ratings) - 1) / 4, rtol=1e-6)
    assert np.ptp(found) > 0.001


def documented(reward: str, address: str) -> PictureScorer:
    """The judge of docs/rewards.md that has this name, at another address."""
    (block,) = re.findall(rf"^```yaml\n(rewards:\n  {reward}:.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    own = read_yaml(block)["rewards"][reward]["judge"]
    return judge(address, **{name: value for name, value in own.items() if name not in ("url", "model")})


def test_unified_reward_is_read_as_it_answers(endpoint: Endpoint, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the example of an answer that its authors give."""
    lines = ["Alignment Score (1-5): 2.694700002670288", "Coherence Score (1-5): 2.371500015258789"]
    monkeypatch.setattr(endpoint, "says", "\n".join([*lines, "Style Score (1-5): 2.802500009536743"]))
    (found,) = documented("unified_reward", url)(MEDIA[:1], PROMPTS[:1])["faithful"]
    assert found == pytest.approx(((2.6947 + 2.3715 + 2.8025) / 3 - 1) / 4, abs=1e-6)
    (request,) = endpoint.requests
    *pictures, question = request["messages"][0]["content"]
    assert [part["type"] for part in pictures] == ["image_url"]
    assert question["text"].endswith("Text Caption: [a red dog]")


def test_geneval_2_is_the_mean_over_a_prompt_s_claims(endpoint: Endpoint, url: str) -> None:
    claims = [["Is this a dog ?", "Is this red ?"], ["Is this a cat ?"]]
    prompts = [Prompt(f"prompt {number}", {"claims": own}) for number, own in enumerate(claims)]
    found = documented("geneval2", url)(MEDIA[:2], prompts)["faithful"]
    asked = [[f"{claim} Answer yes or no." for claim in own] for own in claims]
    grades = [np.mean([share_of_yes(endpoint, [p], q) for q in own]) for p, own in zip(MEDIA, asked, strict=False)]
    np.testing.assert_allclose(found, grades, rtol=1e-6)


def test_a_number_behind_a_label_is_its_last() -> None:
    text = "A Score (1-5): 2.5, or rather\nA Score (1-5): 3\nB Score (1-5):-1"
    assert number_behind("A Score (1-5):", text, 1, 5) == 3
    for label in ("B Score (1-5):", "C Score (1-5):"):
        with pytest.raises(ValueError, match=re.escape(f"no number from 1 to 5 behind '{label}'")):
            number_behind(label, text, 1, 5)


@pytest.mark.parametrize("own", [{"answer": "text"}, {"labels": ["A:"]}, {"answer": "text", "labels": [""]}])
def test_labels_belong_to_texts(own: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"labels is .*; `answer: text` takes one or more, and other answers take none"
    ):
        settings("http://127.0.0.1:9/v1", **own)


def test_a_grade_off_the_scale_is_no_score(endpoint: Endpoint, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = judge(url, answer="rubric", scale=[2, 4], questions=["Is this {prompt} ?"])
    monkeypatch.setattr(endpoint, "says", '{"score": 9}')
    with pytest.raises(NotScored, match=r"""'Is this .*' was answered '{"score": 9}': no such JSON"""):
        asks(MEDIA, PROMPTS)


def test_yes_and_no_are_found_in_any_case_and_with_blanks() -> None:
    top = [("yesterday", 0.4), ("Yes", 0.3), (" yes", 0.1), ("NO\n", 0.1)]
    assert yes_share([(token, math.log(p)) for token, p in top]) == pytest.approx(0.8)
    assert yes_share([("no", math.log(0.2))]) == 0
    with pytest.raises(ValueError, match="neither yes nor no: its likeliest first tokens are 'yesterday'"):
        yes_share([("yesterday", math.log(0.4))])


def test_of_a_clip_some_frames_are_shown_in_order(endpoint: Endpoint, url: str) -> None:
    clips = np.stack([MEDIA, MEDIA[::-1]])  # of four frames
    asks = judge(url, frames=3, questions=["Is this a dog ?"])
    found = asks(clips, PROMPTS[:2])["faithful"]
    shown = [[clip[0], clip[2], clip[3]] for clip in clips]
    np.testing.assert_allclose(found, [share_of_yes(endpoint, own, "Is this a dog ?") for own in shown], rtol=1e-6)


def test_the_same_question_about_the_same_picture_is_asked_once(endpoint: Endpoint, url: str) -> None:
    asks = judge(url, questions=["Is this {prompt} ?"])
    twice, prompts = np.concatenate([MEDIA, MEDIA]), [*PROMPTS, *PROMPTS]
    found = asks(twice, prompts)["faithful"]
    assert len(endpoint.requests) == 4
    np.testing.assert_array_equal(asks(MEDIA, PROMPTS)["faithful"], found[4:])
    assert len(endpoint.requests) == 4
    asks(MEDIA[:1], ["a cat"])
    asks(255 - MEDIA[:1], PROMPTS[:1])
    assert len(endpoint.requests) == 6


def test_answers_beyond_the_kept_ones_are_asked_for_again(endpoint: Endpoint, url: str) -> None:
    asks = judge(url, cached_answers=1)
    assert len(asks(MEDIA, PROMPTS)["faithful"]) == 4
    asked = len(endpoint.requests)
    asks(MEDIA[:2], PROMPTS[:2])
    assert len(endpoint.requests) > asked


def test_a_busy_server_is_asked_again_until_it_answers(endpoint: Endpoint, url: str) -> None:
    asks = judge(url, questions=["Is this {prompt} ?"], extra={"chat_template_kwargs": {"enable_thinking": False}})
    endpoint.failures[:] = [503, 429]
    (found,) = asks(MEDIA[:1], PROMPTS[:1])["faithful"]
    assert found == pytest.approx(share_of_yes(endpoint, [MEDIA[0]], "Is this a red dog ?"), rel=1e-6)
    assert [request["chat_template_kwargs"] for request in endpoint.requests] == [{"enable_thinking": False}] * 3
    assert set(endpoint.keys) == {f"Bearer {KEY}"}


def test_a_refused_question_has_no_score(endpoint: Endpoint, url: str) -> None:
    asks = judge(url)
    endpoint.failures[:] = [422] * 9
    with pytest.raises(NotScored, match=r"reward 'faithful': 'Is this .*' has no answer by http.*422") as failure:
        asks(MEDIA, PROMPTS)
    assert failure.value.final
    assert KEY not in str(failure.value)


def test_a_prompt_that_lacks_a_field_spoils_no_other(endpoint: Endpoint, url: str) -> None:
    replica = replica_of(settings(url))
    first, second = Media(MEDIA[:1]), Media(MEDIA[1:2])
    bad, good = at_once([replica.score(first, ["a cat"], "bad"), replica.score(second, PROMPTS[1:2], "good")])
    assert isinstance(bad, InputError)
    assert "the prompt 'a cat' has no field 'things'; there are prompt" in str(bad)
    assert isinstance(good, ScoreReply)
    assert len(good.scores["faithful"]) == 1


@pytest.mark.parametrize(
    ("status", "attempts"),
    [(503, 7), (429, 7), (422, 1 + 3)],  # of the refused batch, and of each request by itself
)
def test_only_a_refused_batch_is_asked_one_by_one(endpoint: Endpoint, url: str, status: int, attempts: int) -> None:
    replica = replica_of(settings(url, questions=["Is this a dog ?"]))
    endpoint.failures[:] = [status] * 99
    replies = at_once(replica.score(Media(MEDIA[:1]), PROMPTS[:1], id) for id in "abc")
    assert len(endpoint.requests) == attempts
    assert all(isinstance(reply, NotScored) and reply.final for reply in replies)


def test_a_judge_that_is_gone_answers_no_request(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "RETRIES", 0)
    with serving(endpoint.app()) as address:
        replica = replica_of(settings(f"{address}v1"))
    replies = at_once(replica.score(Media(MEDIA[:1]), PROMPTS[:1], id) for id in "abc")
    assert all(isinstance(reply, NotAnswered) for reply in replies)
    assert len(set(map(id, replies))) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "big-judge"}, f"model is 'big-judge'; the endpoint serves {NAME}"),
        ({"api_key_env": "NO_SUCH_KEY"}, "api_key_env is 'NO_SUCH_KEY', a variable that isn't set here"),
        ({"api_key_env": None}, "url is '.*', which answers 401 .*no such key"),
        ({"url": "http://127.0.0.1:9/v1"}, "url is 'http://127.0.0.1:9/v1', which doesn't answer"),
    ],
)
def test_check_says_what_keeps_a_judge_from_answering(
    endpoint: Endpoint, url: str, run_settings: Settings, changes: dict[str, Any], reason: str
) -> None:
    own = settings(url, **{"questions": ["Is this {prompt} ?"], **changes})
    found = check(run_settings({"rewards": {"faithful": own.model_dump(exclude_defaults=True)}}))
    assert any(re.search(f"rewards.faithful.judge.{reason}", line) for line in found.missing), found.missing
    assert not any("another-key" in str(key) for key in endpoint.keys)


@pytest.mark.parametrize("page", ["<html>", "[1]", "{}", '{"data": 5}', '{"data": [{"name": "x"}]}'])
def test_a_page_that_is_no_list_of_models_is_told(
    endpoint: Endpoint, url: str, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    monkeypatch.setattr(endpoint, "page", page)
    with pytest.raises(InputError, match=f"rewards.faithful.judge.url is '{url}', where no list of models is"):
        judge(url)


@pytest.mark.parametrize("page", ["<html>", "{}"])
def test_a_page_that_is_no_answer_is_no_score(
    endpoint: Endpoint, url: str, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    asks = judge(url)
    monkeypatch.setattr(endpoint, "page", page)
    with pytest.raises(NotScored, match=f"reward 'faithful': {url} answered with what can't be read") as failure:
        asks(MEDIA, PROMPTS)
    assert not failure.value.final


@pytest.mark.parametrize("opponents", [None, 2], ids=["alone", "compared"])
def test_a_run_keeps_the_key_of_its_judge_to_itself(
    endpoint: Endpoint, url: str, run_settings: Settings, opponents: int | None
) -> None:
    own = settings(url, questions=["Is this {prompt} ?"], opponents=opponents)
    rewards = {"faithful": own.model_dump(exclude_defaults=True)}
    changes = {"rewards": rewards, "iterations": 1, "evaluation.prompts": 1}
    run = train(run_settings(changes), RunDisplay(Console(quiet=True)))
    line = json.loads((run / "metrics.jsonl").read_text())
    assert 0 < line["rewards"]["faithful"]["mean"] < 1
    assert (line["rewards"]["faithful"]["mean"] == pytest.approx(0.5, abs=1e-9)) == (opponents is not None)
    assert line["edges"] > 0
    assert VARIABLE in (run / "recipe.yaml").read_text()
    assert not [file for file in run.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]
