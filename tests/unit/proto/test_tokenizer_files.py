"""Which files hold the words of a tokenizer."""

from pathlib import Path

import pytest
from branchgrpo.proto.tokenizer_files import missing_vocabulary

CLIP = {"vocab_file": "vocab.json", "merges_file": "merges.txt", "tokenizer_file": "tokenizer.json"}
GEMMA = {"tokenizer_file": "tokenizer.json"}
SLOW = {"vocab_file": "spiece.model"}


@pytest.mark.parametrize(
    ("names", "there", "missing"),
    [
        (CLIP, [], "tokenizer.json, or vocab.json and merges.txt"),
        (CLIP, ["vocab.json"], "tokenizer.json, or vocab.json and merges.txt"),
        (CLIP, ["vocab.json", "merges.txt"], None),
        (CLIP, ["tokenizer.json"], None),
        (GEMMA, [], "tokenizer.json"),
        (GEMMA, ["tokenizer.json"], None),
        (SLOW, [], "tokenizer.json, or spiece.model"),
        (SLOW, ["spiece.model"], None),
        ({}, [], None),
    ],
)
def test_one_file_or_all_of_several(
    names: dict[str, str], there: list[str], missing: str | None, tmp_path: Path
) -> None:
    for name in there:
        (tmp_path / name).touch()
    assert missing_vocabulary(tmp_path, names) == missing
