"""The order of prompts is a pure function of seed and iteration."""

from pathlib import Path

import pytest
from branchgrpo.cluster.prompts import prompts_of, read_prompts
from branchgrpo.proto.errors import InputError

PROMPTS = list("abcdefg")


def test_every_pass_holds_each_prompt_once_in_a_new_order() -> None:
    drawn = [prompt for iteration in range(1, 8) for prompt in prompts_of(iteration, PROMPTS, 3, seed=1)]
    passes = [drawn[i : i + 7] for i in range(0, 21, 7)]
    assert [sorted(one) for one in passes] == [PROMPTS] * 3
    assert len({tuple(one) for one in passes}) == 3


def test_the_seed_decides() -> None:
    assert prompts_of(2, PROMPTS, 7, seed=1) == prompts_of(2, PROMPTS, 7, seed=1)
    assert prompts_of(2, PROMPTS, 7, seed=1) != prompts_of(2, PROMPTS, 7, seed=2)


def test_blank_lines_are_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\n  two \n")
    assert read_prompts(tmp_path / "p.txt", "prompts.train") == ["one", "two"]


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prompts\.train is '.*nothing\.txt'; no such file"):
        read_prompts(tmp_path / "nothing.txt", "prompts.train")
    (tmp_path / "p.txt").write_text("\n \n")
    with pytest.raises(InputError, match="holds no prompt"):
        read_prompts(tmp_path / "p.txt", "prompts.train")
