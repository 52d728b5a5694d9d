"""Where prompts come from; and their order, a pure function of seed and iteration."""

import base64
import datetime
import gzip
import io
import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from branchgrpo.cluster.run.prompt_order import training_and_held_out
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.prompt import Prompt, fields_of
from branchgrpo.proto.prompts import first_prompt, read_prompts, write_lines
from branchgrpo.proto.scoring import ScoreRequest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Settings, prompts_of

PROMPTS = list("abcdefg")


def test_every_pass_holds_each_prompt_once_in_a_new_order() -> None:
    drawn = [prompt for iteration in range(1, 8) for prompt in prompts_of(iteration, PROMPTS, 3, seed=1)]
    passes = [drawn[i : i + 7] for i in range(0, 21, 7)]
    assert [sorted(one) for one in passes] == [PROMPTS] * 3
    assert len({tuple(one) for one in passes}) == 3


def test_the_order_is_the_same_whatever_an_iteration_takes() -> None:
    """Drawn one by one, it is the order that runs have had from the first version on."""
    one_by_one = [prompt for number in range(1, 22) for prompt in prompts_of(number, PROMPTS, 1, seed=5)]
    assert "".join(one_by_one) == "fgacdbefdagecbefgbacd"
    for size in (3, 7, 10, 21):  # of parts of a pass, a whole one, and several
        drawn = [prompt for number in range(1, 1 + -(-21 // size)) for prompt in prompts_of(number, PROMPTS, size, 5)]
        assert drawn[:21] == one_by_one


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
    assert "; line 3 has no JSON: Expecting value" in caplog.text
    assert "; line 4 has no text; line 5" in caplog.text


def test_fields_travel_with_the_prompt(tmp_path: Path) -> None:
    prompt = Prompt("one", {"text": "1"})
    assert (prompt, hash(prompt)) == ("one", hash("one"))
    assert fields_of(pickle.loads(pickle.dumps([prompt]))[0]) == {"text": "1"}
    request = ScoreRequest(Media(np.zeros((2, 1, 1, 3), np.uint8)), [prompt, "two"], ["ocr"])
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


def test_a_column_may_hold_lists_of_pictures(tmp_path: Path) -> None:
    pictures = [PIL.Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    features = {"prompt": datasets.Value("string"), "both": datasets.List(datasets.Image()), "one": datasets.Image()}
    rows = [{"prompt": "one", "both": pictures, "one": pictures[0]}]
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).save_to_disk(tmp_path / "data")
    (prompt,) = read_prompts(tmp_path / "data", "prompts.train", picture_column="both")
    assert [picture.pixels()[0, 0].tolist() for picture in prompt.pictures] == [[255, 0, 0], [0, 0, 255]]
    (prompt,) = read_prompts(tmp_path / "data", "prompts.train", picture_column="one")
    assert len(prompt.fields["both"]) == 2


def test_pictures_of_a_split_lie_in_its_dataset(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"prompt": "one", "image": "p.png"}])
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "data")
    for folder, colour in ((tmp_path, "blue"), (tmp_path / "data", "red")):
        PIL.Image.new("RGB", (3, 2), colour).save(folder / "p.png")
    for source in ("data", "data@train"):
        (prompt,) = read_prompts(tmp_path / source, "prompts.train", picture_column="image")
        assert prompt.pictures[0].pixels()[0, 0].tolist() == [255, 0, 0], source


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
    for name in ("p.xls", "p", "p.gz", "p.xls.gz"):
        (tmp_path / name).write_text("one\n")
        with pytest.raises(InputError, match=f"^prompts.train is '.*{name}'; it must be one of .txt"):
            read_prompts(tmp_path / name, "prompts.train")


def test_a_text_is_held_out_with_all_its_rows(run_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("\n".join(PROMPTS * 5))
    repeated = {"prompts.train": str(tmp_path / "rows.txt"), "prompts.held_out": None, "prompts.held_out_count": 3}
    train, held_out = training_and_held_out(run_settings(repeated))
    assert (len(train), len(held_out)) == (4 * 5, 3)
    assert not set(train) & set(held_out)


def test_some_prompts_can_be_held_out(run_settings: Settings) -> None:
    settings = run_settings({"prompts.held_out": None, "prompts.held_out_count": 4, "evaluation.prompts": None})
    train, held_out = training_and_held_out(settings)
    assert (len(train), len(held_out)) == (10, 4)
    assert not set(train) & set(held_out)
    assert training_and_held_out(settings) == (train, held_out)
    assert training_and_held_out(settings.model_copy(update={"seed": 9}))[1] != held_out
    with pytest.raises(InputError, match=r"prompts\.held_out_count is 14 of 14 prompts; it must leave some"):
        training_and_held_out(run_settings({"prompts.held_out": None, "prompts.held_out_count": 14}))


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


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("capital", [False, True])
@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".txt", "one\r\ntwo, too\r\n"),
        (".jsonl", '{"prompt": "one"}\n{"prompt": "two, too"}\n'),
        (".ndjson", '"one"\n"two, too"'),
        (".json", '["one", "two, too"]'),
        (".json", '{"prompt": "one"}\n{"prompt": "two, too"}\n'),
        (".csv", 'prompt\none\n"two, too"\n'),
        (".csv", "a;prompt\n1;one\n\n2;two, too\n"),
        (".csv", 'prompt, a\none, 1\n"two, too", "2"\n'),
        (".tsv", "a\tprompt\n1\tone\n2\ttwo, too\n"),
    ],
)
def test_every_kind_of_file(suffix: str, text: str, capital: bool, packed: bool, tmp_path: Path) -> None:
    suffix = (suffix + ".gz" * packed).upper() if capital else suffix + ".gz" * packed
    path = tmp_path / f"p{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    prompts = read_prompts(path, "prompts.train")
    assert prompts == ["one", "two, too"]
    if "a" in text.partition("\n")[0].replace("prompt", ""):
        assert [prompt.fields for prompt in prompts] == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"a cat\na dog\n", "its first line, the header, has no 'prompt', of prompts.column: a cat"),
        ("p.csv", b'prompt\none\n"two\nthree\n', "can't be read: line 4: unexpected end of data"),
        ("p.tsv", b'prompt\ta\n"hi" she said\t1\n', "can't be read: line 2: ' ' expected after"),
        ("p.csv", b"prompt,prompt\na,b\n", "its header names a column twice"),
        ("p.csv", b"", "the header, has no 'prompt'"),
        ("p.json", b'["one", "two"', "has no JSON|can't be read: no JSON"),
        ("p.json", b'{\n"prompts": ["one"]\n}', "holds no prompt: line 1 has no JSON"),
        ("p.json", b'{"prompts": ["one"]}', "line 1 has no text 'prompt', of prompts.column; there are prompts"),
        (
            "p.txt",
            "é".encode("latin1"),
            r"isn't text in UTF-8 \(line 1 has the byte 0xe9\).*`iconv -f latin1 -t utf-8`",
        ),
        ("p.txt", "one two".encode("utf-16-le"), "looks like UTF-16 without a byte order mark; `iconv -f utf-16le"),
        ("p.txt", b"\xff\xfea", "it isn't text in UTF-16-LE"),
        ("p.parquet", b"no parquet", "can't be read"),
        ("p.jsonl.gz", b"no gzip", "can't be read: Not a gzipped file"),
        ("p.jsonl.gz", gzip.compress(b"x" * 1000, mtime=0)[:20], "can't be read: Compressed file ended"),
    ],
)
def test_what_can_t_be_read_is_told_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"^prompts.train is '.*{name}'.*{message}") as error:
        read_prompts(tmp_path / name, "prompts.train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_how_text_is_written(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,a\ncafé 😀,1\n", encoding=encoding)
    (prompt,) = read_prompts(tmp_path / "p.csv", "prompts.train")
    assert (prompt, prompt.fields) == ("café 😀", {"a": "1"})


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (r'{"prompt": "\ud83d"}', "half a character"),
        (r'{"prompt": "x", "a": ["\udc00"]}', "a field that can't be kept: half a character"),
        (r'{"prompt": "x", "\udc00": 1}', "a field that can't be kept"),
        (r'{"prompt": "a\u0000b"}', "a NUL in its text"),
        ('{"prompt": "x", "a": ' + "[" * 300 + "]" * 300 + "}", "a field that can't be kept"),
        ('{"prompt": "x", "a": ' + "[" * 99999 + "]" * 99999 + "}", "JSON that is nested too deeply"),
        ('{"prompt": "x", "a": ' + "1" * 5000 + "}", "no JSON: Exceeds the limit"),
        ('{"prompt": ["x"]}', "no text"),
    ],
)
def test_a_row_that_can_t_be_sent_is_left_out(
    row: str, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p.jsonl").write_text(f'"one"\n{row}\n"two"\n')
    assert read_prompts(tmp_path / "p.jsonl", "prompts.train") == ["one", "two"]
    assert f"prompts.train: 1 of 3 rows are left out: line 2 has {told}" in caplog.text
    caplog.clear()
    read_prompts(tmp_path / "p.jsonl", "prompts.train", quiet=True)
    assert not caplog.text


def test_numbers_that_json_hasn_t_are_null(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "a": NaN, "b": [Infinity, {"c": -Infinity}], "d": 1.5}\n')
    (prompt,) = read_prompts(tmp_path / "p.jsonl", "prompts.train")
    assert prompt.fields == {"a": None, "b": [None, {"c": None}], "d": 1.5}


def test_repeats_and_held_out_prompts_trained_on_are_counted(
    run_settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ['{"prompt": "a", "text": "1"}', '{"prompt": "a", "text": "2"}', '"b"', '"b"', '"b"', '"c"']
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    (tmp_path / "held_out.txt").write_text("a\nc\nd\n")
    changes = {"prompts.train": str(tmp_path / "train.jsonl"), "prompts.held_out": str(tmp_path / "held_out.txt")}
    assert len(training_and_held_out(run_settings(changes))[0]) == 6
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "prompts.train: 2 of 6 rows repeat an earlier one",
        "prompts.held_out: 2 of 3 are in prompts.train too, and are trained on",
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
CONTENT = st.binary() | st.lists(st.fixed_dictionaries({"prompt": JSON}, optional={"a": JSON})).map(
    lambda rows: "\n".join(map(json.dumps, rows)).encode()
)


@given(CONTENT, st.sampled_from([".txt", ".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"]), st.booleans())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_gives_prompts_that_can_be_sent_or_one_error(
    tmp_path: Path, content: bytes, suffix: str, packed: bool
) -> None:
    path = tmp_path / f"p{suffix}"
    path.write_bytes(gzip.compress(content) if packed else content)
    try:
        prompts = read_prompts(path, "prompts.train")
    except InputError as error:
        wrong = str(error)
    else:
        wrong = ""
    assert "\n" not in wrong
    if wrong:
        return
    copy = tmp_path / "copy.jsonl"
    copy.write_text(write_lines(prompts))
    again = read_prompts(copy, "prompts.train")
    assert [(prompt, prompt.fields) for prompt in again] == [(prompt, prompt.fields) for prompt in prompts]
    request = ScoreRequest(Media(np.zeros((len(prompts), 1, 1, 3), np.uint8)), prompts, ["ocr"]).to_bytes()
    assert [str(prompt) for prompt in ScoreRequest.from_bytes(request).prompts] == [str(prompt) for prompt in prompts]


def test_the_first_prompt_is_that_of_the_file(run_settings: Settings, tmp_path: Path) -> None:
    """Without the rows behind it, such as the pictures in them, and of rows that are left out the next."""
    rows = [{"text": "no prompt"}, {"prompt": " 472 ", "seed": 3}, {"prompt": "5", "image": "missing.png"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    PIL.Image.new("RGB", (3, 2)).save(tmp_path / "one.png")
    given = run_settings({"prompts.train": str(tmp_path / "rows.jsonl")}).prompts
    first = first_prompt(given)
    assert (first, fields_of(first)) == ("472", {"seed": 3})
    assert first == read_prompts(given.train, "prompts.train")[0]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "5", "image": "one.png"}) + "\n" + json.dumps(rows[2]))
    shown = run_settings({"prompts.train": str(tmp_path / "rows.jsonl"), "prompts.picture_column": "image"}).prompts
    assert len(first_prompt(shown).pictures) == 1
    with pytest.raises(InputError, match=r"line 2 has in 'image' the picture '.*missing\.png'"):
        read_prompts(shown.train, "prompts.train", picture_column="image")
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(InputError, match="which holds no prompt"):
        first_prompt(given)
