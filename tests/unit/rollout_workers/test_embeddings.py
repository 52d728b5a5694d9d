"""Prompts are encoded once: in a process, and on a disk that several processes share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from branchgrpo.proto.atomic_files import is_full, whole
from branchgrpo.proto.prompt import Prompt
from branchgrpo.proto.settings import PolicySettings
from branchgrpo.rollout_workers.policies import embeddings
from branchgrpo.rollout_workers.policies.base import Policy
from branchgrpo.rollout_workers.policies.embeddings import Embeddings
from branchgrpo.rollout_workers.policies.load import load_policy
from plain_diffusers import policy_of, prompts_of
from safetensors import SafetensorError


@pytest.fixture
def encoded(tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that have gone through the text encoders, and `-` when these have left the device."""
    calls: list[str] = []
    encode = tiny_policy.encode
    monkeypatch.setattr(tiny_policy, "encode", lambda prompt: calls.append(prompt) or encode(prompt))
    monkeypatch.setattr(tiny_policy, "release_encoders", lambda: calls.append("-"))
    return calls


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_prompt_is_encoded_once(tiny_policy: Policy, encoded: list[str], on_disk: bool, tmp_path: Path) -> None:
    folder = tmp_path / "embeddings" if on_disk else None
    first = Embeddings(tiny_policy, folder)
    one = first.of(["1", "2", "1"])
    assert encoded == ["1", "2", "-"]
    first.of(["2", "3"])
    assert encoded == ["1", "2", "-", "3", "-"]
    assert torch.equal(one[0]["prompt_embeds"], one[2]["prompt_embeds"])

    again = Embeddings(tiny_policy, folder).of(["1"])[0]
    assert encoded[5:] == ([] if on_disk else ["1", "-"])
    assert all(torch.equal(value, again[name]) for name, value in one[0].items())


def test_the_oldest_leave_the_memory(tiny_policy: Policy, encoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "IN_MEMORY", 2)
    known = Embeddings(tiny_policy, None)
    for prompts in (["1", "2"], ["1"], ["3"], ["1"], ["2"]):
        known.of(prompts)
    assert encoded == ["1", "2", "-", "3", "-", "2", "-"]
    size = sum(value.nbytes for value in known.of(["2"])[0].values())
    monkeypatch.setattr(embeddings, "IN_MEMORY", 256)
    monkeypatch.setattr(embeddings, "IN_MEMORY_BYTES", 2 * size)
    for prompts in (["5", "6", "7"], ["6", "7"], ["5"]):
        known.of(prompts)
    assert encoded[7:] == ["5", "6", "7", "-", "5", "-"]


@pytest.mark.parametrize(
    "changes", [{"max_sequence_length": 5}, {"precision": "bfloat16"}, {"pretrained": "glyphs", "width": 64}]
)
def test_what_depends_on_something_else_lies_elsewhere(
    tiny_policy: Policy, policy_settings: PolicySettings, changes: dict
) -> None:
    assert load_policy(policy_settings).encoding == tiny_policy.encoding
    assert load_policy(policy_settings.model_copy(update=changes)).encoding != tiny_policy.encoding


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_embeddings_of_another_library_lie_elsewhere(
    library: str, policy_settings: PolicySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another version, which may encode otherwise."""
    before = load_policy(policy_settings).encoding
    monkeypatch.setattr(f"{library}.__version__", "0.0.1")
    assert load_policy(policy_settings).encoding != before


def test_pictures_and_sizes_of_one_text_have_their_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of FLUX.1 Kontext, which encodes pictures in the size that is drawn; another process reads what one wrote."""
    own, disk = policy_of("FLUX.1 Kontext", tmp_path / "pipeline"), tmp_path / "embeddings"
    prompts = [Prompt("1", pictures=prompt.pictures) for prompt in prompts_of("FLUX.1 Kontext")]
    sizes = [own, own.model_copy(update={"height": own.width, "width": own.height})]
    written = [Embeddings(load_policy(size), disk).of(prompts) for size in sizes]
    files = [*disk.rglob("*.safetensors")]
    assert len(files) == 4
    assert len({file.read_bytes() for file in files}) == 4

    for size, expected in zip(sizes, written, strict=True):
        policy: Any = load_policy(size)
        monkeypatch.setattr(policy, "encode", lambda prompt: pytest.fail(f"{prompt} is encoded again"))
        for read, known in zip(Embeddings(policy, disk).of(prompts), expected, strict=True):
            assert read.keys() == known.keys()
            assert all(torch.equal(value, known[name]) for name, value in read.items())


def test_a_folder_that_cannot_be_written_to_stops_nothing(
    tiny_policy: Policy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert len(Embeddings(tiny_policy, tmp_path / "file").of(["1"])) == 1
    assert "an embedding could not be kept" in caplog.text


def test_files_that_cannot_be_written_or_read_stop_nothing(
    tiny_policy: Policy, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    Embeddings(tiny_policy, tmp_path).of(["1"])
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"cut off")
    Embeddings(tiny_policy, tmp_path).of(["1"])
    Embeddings(tiny_policy, tmp_path).of(["1"])
    assert encoded == ["1", "-", "1", "-"]
    assert "an embedding is computed again" in caplog.text

    def save_file(*_: object) -> None:
        raise SafetensorError("I/O error: Disk quota exceeded (os error 122)")

    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    assert len(Embeddings(tiny_policy, tmp_path).of(["2"])) == 1
    assert "an embedding could not be kept" in caplog.text
    with pytest.raises(OSError, match="No space left") as told, whole(tmp_path / "weights"):
        save_file()
    assert is_full(told.value)


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_encoders_come_and_leave_without_a_copy(device: str, tiny_policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [weight for encoder in tiny_policy.encoders.values() for weight in encoder.parameters()]
    places, seen = [weight.data_ptr() for weight in weights], set[str]()
    monkeypatch.setattr(tiny_policy, "device", torch.device(device))
    monkeypatch.setattr(tiny_policy, "embed", lambda prompt: seen.update(w.device.type for w in weights) or {})
    for _ in range(2):
        tiny_policy.encode("1")
        tiny_policy.release_encoders()
        assert [weight.data_ptr() for weight in weights] == places
    assert seen == {device}
