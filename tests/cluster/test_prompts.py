"""Where prompts come from; and their order, a pure function of seed and iteration."""

import base64
import datetime
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from branchgrpo.cluster.prompts import prompts_of, training_and_held_out
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.prompts import Prompt, fields_of, read_prompts, write_lines
from branchgrpo.proto.scoring import ScoreRequest
from branchgrpo.proto.settings import RunSettings

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


ROWS = [{"prompt": "one", "text": "1"}, {"prompt": "two", "text": "2"}]


def written(kind: str, folder: Path) -> Path:
    if kind == "folder":
        datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
        return folder / "saved"
    path = folder / f"prompts.{kind}"
    if kind == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    else:
        lines = [json.dumps(row) for row in ROWS]
        path.write_text("\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "folder"])
def test_rows_with_fields_come_from_every_source(kind: str, tmp_path: Path) -> None:
    source = written(kind, tmp_path)
    prompts = read_prompts(source, "prompts.train")
    assert prompts == ["one", "two"]
    assert [prompt.fields for prompt in prompts] == [{"text": "1"}, {"text": "2"}]
    other = read_prompts(source, "prompts.train", column="text")
    assert [(str(prompt), prompt.fields) for prompt in other] == [("1", {"prompt": "one"}), ("2", {"prompt": "two"})]


def test_hpdv2_s_list_of_texts(tmp_path: Path) -> None:
    (tmp_path / "anime.json").write_text('["a cat", "a dog"]')
    assert read_prompts(tmp_path / "anime.json", "prompts.held_out") == ["a cat", "a dog"]


def test_bad_rows_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"text": "no"}\nnot json\n{"prompt": " "}\n{"prompt": 3}\n')
    assert read_prompts(tmp_path / "p.jsonl", "prompts.train") == ["one"]
    assert "prompts.train: 4 of 5 rows are left out: line 2 has no text 'prompt', of " in caplog.text
    assert "; line 3 has no text; line 4" in caplog.text


def test_fields_travel_with_the_prompt(tmp_path: Path) -> None:
    prompt = Prompt("one", {"text": "1"})
    assert (prompt, hash(prompt)) == ("one", hash("one"))
    assert fields_of(pickle.loads(pickle.dumps([prompt]))[0]) == {"text": "1"}
    request = ScoreRequest(np.zeros((2, 1, 1, 3), np.uint8), [prompt, "two"], ["ocr"])
    received = ScoreRequest.from_bytes(request.to_bytes()).prompts
    assert [fields_of(one) for one in received] == [{"text": "1"}, {}]


@pytest.mark.parametrize("column", ["prompt", "text"])
def test_copies_hold_the_same_prompts(column: str, tmp_path: Path) -> None:
    """With texts that have line ends of some kind in them, and a field by the usual name of the text."""
    other = "text" if column == "prompt" else "prompt"
    prompts = [Prompt("one", {other: "1"}), *map(Prompt, ("a\nb", "a\u2028b", "a\x85b", "ä"))]
    (tmp_path / "lines.jsonl").write_text(write_lines(prompts, column))
    again = read_prompts(tmp_path / "lines.jsonl", "prompts.train", column)
    assert [(str(one), one.fields) for one in again] == [(str(one), one.fields) for one in prompts]


@pytest.mark.parametrize("kind", ["saved", "files", "parquet"])
def test_pictures_and_times_of_a_row_become_fields(kind: str, tmp_path: Path) -> None:
    picture = PIL.Image.new("RGB", (3, 2), "red")
    when = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    rows = datasets.Dataset.from_list(
        [{"prompt": "one", "reference": picture, "when": when}, {"prompt": "two", "reference": None, "when": when}],
        features=datasets.Features(
            {
                "prompt": datasets.Value("string"),
                "reference": datasets.Image(),
                "when": datasets.Value("timestamp[s, tz=UTC]"),
            }
        ),
    )
    if kind == "saved":
        rows.save_to_disk(tmp_path / "data")
        source = tmp_path / "data"
    else:
        (tmp_path / "data").mkdir()
        rows.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
        source = Path(f"{tmp_path}/data@test") if kind == "files" else next((tmp_path / "data").iterdir())
    first, second = read_prompts(source, "prompts.train")
    assert second.fields["reference"] is None
    assert first.fields["when"].startswith("2026-01-02T00:00:00")
    content = base64.urlsafe_b64decode(first.fields["reference"]["bytes"])
    with PIL.Image.open(io.BytesIO(content)) as found:
        assert (found.size, found.getpixel((0, 0))) == ((3, 2), (255, 0, 0))
    assert json.loads(write_lines([first]))["when"] == first.fields["when"]


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    parts = datasets.DatasetDict({"seen": datasets.Dataset.from_list(ROWS), "unseen": datasets.Dataset.from_list(ROWS)})
    parts.save_to_disk(tmp_path / "saved")
    assert read_prompts(Path(f"{tmp_path}/saved@unseen"), "prompts.train") == ["one", "two"]
    with pytest.raises(InputError, match="^prompts.train is '.*/saved', which has the splits seen, unseen: name one"):
        read_prompts(tmp_path / "saved", "prompts.train")


def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\n", encoding="utf-8-sig")
    assert read_prompts(tmp_path / "p.txt", "prompts.train") == ["one", "two"]


def test_a_kind_that_is_not_known_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("one\n")
    with pytest.raises(InputError, match="^prompts.train is '.*p.csv'; it must be one of .txt"):
        read_prompts(tmp_path / "p.csv", "prompts.train")


def test_a_text_is_held_out_with_all_its_rows(run_settings: Callable[..., RunSettings], tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("\n".join(PROMPTS * 5))
    repeated = {"prompts.train": str(tmp_path / "rows.txt"), "prompts.held_out": None, "prompts.hold_out": 3}
    train, held_out = training_and_held_out(run_settings(repeated))
    assert (len(train), len(held_out)) == (4 * 5, 3)
    assert not set(train) & set(held_out)


def test_some_prompts_can_be_held_out(run_settings: Callable[..., RunSettings]) -> None:
    settings = run_settings({"prompts.held_out": None, "prompts.hold_out": 4, "evaluation.prompts": None})
    train, held_out = training_and_held_out(settings)
    assert (len(train), len(held_out)) == (10, 4)
    assert not set(train) & set(held_out)
    assert training_and_held_out(settings) == (train, held_out)
    assert training_and_held_out(settings.model_copy(update={"seed": 9}))[1] != held_out
    with pytest.raises(InputError, match=r"prompts\.hold_out is 14 of 14 prompts; it must leave some"):
        training_and_held_out(run_settings({"prompts.held_out": None, "prompts.hold_out": 14}))


def test_an_at_sign_in_a_path_is_a_split_at_its_end_alone(tmp_path: Path) -> None:
    """And there neither if a folder or file is called so."""
    home = tmp_path / "me@work"
    for name in ("data", "data@2"):
        datasets.Dataset.from_list(ROWS[:1] if name == "data" else ROWS).save_to_disk(home / name)
    (home / "data@3.txt").write_text("three\n")
    assert len(read_prompts(home / "data", "prompts.train")) == 1
    assert len(read_prompts(home / "data@2", "prompts.train")) == 2
    assert read_prompts(home / "data@3.txt", "prompts.train") == ["three"]
    with pytest.raises(InputError, match="no such file"):
        read_prompts(tmp_path / "other@work" / "p.txt", "prompts.train")


def test_a_wrong_column_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"caption": "one", "size": 3}\n')
    with pytest.raises(
        InputError, match="holds no prompt: line 1 has no text 'prompt', of prompts.column; there are c"
    ):
        read_prompts(tmp_path / "p.jsonl", "prompts.train")
