"""Score requests, replies and tensors as bytes."""

import pickle

import numpy as np
import pytest
import torch
from branchgrpo.proto.scoring import ScoreReply, ScoreRequest
from branchgrpo.proto.tensors import decode, encode

MEDIA = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)


def test_tensors_of_every_dtype_come_back_equal() -> None:
    tensors = {
        "bf16": torch.randn(3, 5).to(torch.bfloat16),
        "transposed": torch.randn(4, 3).T,
        "int": torch.arange(4),
        "empty": torch.empty(0, 2),
    }
    again, header = decode(encode(tensors, {"a": "ü"}))
    assert header == {"a": "ü"}
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        assert again[name].dtype == value.dtype
        assert torch.equal(again[name], value)


@pytest.mark.parametrize("data", [b"", b"xx", pickle.dumps({"a": 1}), encode({"a": torch.ones(9)})[:-3]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not safetensors"):
        decode(data)


def test_request_and_reply_come_back_equal() -> None:
    request = ScoreRequest(MEDIA, ["a", "b"], ["ocr"], id="7")
    again = ScoreRequest.from_bytes(request.to_bytes())
    assert np.array_equal(again.media, MEDIA)
    assert (list(again.prompts), list(again.rewards), again.id) == (["a", "b"], ["ocr"], "7")
    reply = ScoreReply({"ocr": np.array([0.1, 1.0])}, id="7").check(request.rewards, 2)
    assert ScoreReply.from_bytes(reply.to_bytes()).scores["ocr"].tolist() == [0.1, 1.0]


@pytest.mark.parametrize(
    ("media", "prompts", "rewards", "message"),
    [
        (MEDIA.astype(np.float32), ["a", "b"], ["ocr"], "must be uint8"),
        (MEDIA[0], ["a"], ["ocr"], "must be uint8"),
        (MEDIA, ["a"], ["ocr"], "2 media came with 1 prompts"),
        (MEDIA[:0], [], ["ocr"], "media is empty"),
        (MEDIA, ["a", "b"], [], "rewards is empty"),
    ],
)
def test_bad_requests_are_refused(media: np.ndarray, prompts: list[str], rewards: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreRequest(media, prompts, rewards)


def test_a_request_without_its_facts_is_refused() -> None:
    with pytest.raises(ValueError, match="not a score request"):
        ScoreRequest.from_bytes(encode({"media": MEDIA}))


@pytest.mark.parametrize(
    ("scores", "message"),
    [({}, "was asked for"), ({"ocr": np.ones(3)}, "scores for 2"), ({"ocr": np.array([1, np.nan])}, "finite")],
)
def test_a_reply_that_does_not_answer_is_refused(scores: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreReply(scores).check(["ocr"], 2)
