"""Score requests, replies and tensors as bytes."""

import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from branchgrpo.proto.media import Media
from branchgrpo.proto.packed_tensor import PackedTensor
from branchgrpo.proto.safetensors_codec import decode, encode
from branchgrpo.proto.scoring import ScoreReply, ScoreRequest

MEDIA = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
BFLOAT16 = safetensors.torch.save({"a": torch.ones(9, dtype=torch.bfloat16)})


def test_arrays_come_back_equal() -> None:
    arrays = {
        "transposed": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float16).T,
        "int": np.arange(4),
        "empty": np.empty((0, 2)),
    }
    again, header = decode(encode(arrays, {"a": "ü"}))
    assert header == {"a": "ü"}
    assert again.keys() == arrays.keys()
    for name, value in arrays.items():
        assert again[name].dtype == value.dtype
        assert np.array_equal(again[name], value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_packed_tensor_comes_back_equal(dtype: torch.dtype) -> None:
    tensor = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).T.to(dtype)
    again = pickle.loads(pickle.dumps(PackedTensor.of(tensor))).tensor()
    assert again.dtype == dtype
    assert torch.equal(again, tensor)


@pytest.mark.parametrize("data", [b"", b"xx", pickle.dumps({"a": 1}), encode({"a": np.ones(9)})[:-3], BFLOAT16])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not safetensors"):
        decode(data)


def test_request_and_reply_come_back_equal() -> None:
    request = ScoreRequest(Media(MEDIA), ["a", "b"], ["ocr"], id="7")
    again = ScoreRequest.from_bytes(request.to_bytes())
    assert np.array_equal(again.media.pictures, MEDIA)
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
        ScoreRequest(Media(media), prompts, rewards)


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
