"""Prompts, and where they come from: text, JSON, parquet, Hugging Face datasets.

A prompt is its text. It may carry fields of its row besides (the text to be drawn, a reference picture), which rewards
read.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from .errors import InputError

HUB = "hf:"
"""What the name of a dataset on the Hugging Face hub begins with."""
OFFLINE = "HF_HUB_OFFLINE"
"""Variable that keeps the hub's libraries from the network. The command line sets it where it isn't."""
SAVED = ("dataset_info.json", "dataset_dict.json")
"""One of them is in a folder that `datasets` has saved, and not in one that it would load files from."""
NAMED = 5
"""Bad rows that are named one by one."""
KINDS = ".txt, .jsonl, .json, .parquet"


class Prompt(str):
    """A text with fields. Equal to, and hashed as, the text."""

    fields: Mapping[str, Any]

    def __new__(cls, text: str, fields: Mapping[str, Any] | None = None) -> "Prompt":
        prompt = super().__new__(cls, text)
        prompt.fields = dict(fields or {})
        return prompt

    def __reduce__(self) -> tuple[Any, ...]:
        return Prompt, (str(self), self.fields)


def fields_of(prompt: str) -> Mapping[str, Any]:
    """The fields of a prompt; a plain text has none."""
    return prompt.fields if isinstance(prompt, Prompt) else {}


def with_fields(prompts: Sequence[str], fields: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Prompts with the fields of each. Raises ValueError for another number of them."""
    return list(prompts) if fields is None else [Prompt(p, f) for p, f in zip(prompts, fields, strict=True)]


def read_prompts(source: Path, setting: str, column: str = "prompt") -> list[Prompt]:
    """All prompts of a file, of a folder that `datasets` reads, or of `hf:NAME` of the hub (both with `@split`).

    Rows are texts, or objects with the text under `column`; what else they hold are the prompt's fields, as JSON has
    them: times are texts, bytes are in base64, a picture of a dataset is an object with `bytes` and `path`. Rows
    without a text, or with fields that JSON can't hold, are left out, counted and named in a warning. Raises
    InputError, naming `setting`, if the source can't be read or no prompt is left.
    """
    prompts, bad = [], []
    for place, row in _rows(source, setting):
        text = row.get(column) if isinstance(row, Mapping) else row
        if isinstance(text, str) and (text := text.strip()):
            fields = {k: v for k, v in row.items() if k != column} if isinstance(row, Mapping) else {}
            try:
                prompts.append(Prompt(text, to_jsonable_python(fields, bytes_mode="base64")))
            except PydanticSerializationError as error:
                bad.append(f"{place} has a field that can't be kept: {error}")
        else:
            bad.append(f"{place} has {_lacks(row, column)}")
    if bad:
        named = "; ".join([*bad[:NAMED], *(["..."] if len(bad) > NAMED else [])])
        total = len(bad) + len(prompts)
        logging.getLogger(__name__).warning("%s: %d of %d rows are left out: %s", setting, len(bad), total, named)
    if not prompts:
        raise InputError(f"{setting} is '{source}', which holds no prompt{f': {bad[0]}' if bad else ''}")
    return prompts


def _lacks(row: object, column: str) -> str:
    if not isinstance(row, Mapping) or column in row:
        return "no text"
    return f"no text {column!r}, of prompts.column; there are {', '.join(map(str, row))}"


def write_lines(prompts: Sequence[str], column: str = "prompt") -> str:
    """Prompts as JSON lines, of which `read_prompts` makes the same again."""
    return "".join(json.dumps({column: str(p), **fields_of(p)}) + "\n" for p in prompts)


def _rows(source: Path, setting: str) -> Iterator[tuple[str, Any]]:
    """Each row, and what to call its place."""
    name, _ = _split(source)
    if str(source).startswith(HUB) or (Path(name).is_dir() and not source.is_file()):
        yield from _numbered("row", _dataset(source, setting))
        return
    if not source.is_file():
        raise InputError(f"{setting} is '{source}'; no such file")
    try:
        if source.suffix == ".parquet":
            yield from _numbered("row", _parquet(source, setting))
        elif source.suffix == ".json":
            content = json.loads(source.read_text(encoding="utf-8-sig"))
            if not isinstance(content, list):
                raise InputError(f"{setting} is '{source}', which holds no list of texts or objects")
            yield from _numbered("entry", content)
        elif source.suffix == ".jsonl":
            lines = source.read_text(encoding="utf-8-sig").split("\n")
            yield from ((f"line {i}", _parsed(line)) for i, line in enumerate(lines, 1) if line.strip())
        elif source.suffix == ".txt":
            lines = source.read_text(encoding="utf-8-sig").split("\n")
            yield from ((f"line {i}", line) for i, line in enumerate(lines, 1) if line.strip())
        else:
            raise InputError(f"{setting} is '{source}'; it must be one of {KINDS}, a folder of a dataset, or hf:NAME")
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{setting} is '{source}', which isn't UTF-8 text: {error.reason}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{setting} is '{source}', which can't be read: {error}") from error


def _numbered(kind: str, rows: Any) -> Iterator[tuple[str, Any]]:
    return ((f"{kind} {number}", row) for number, row in enumerate(rows, start=1))


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _split(source: Path) -> tuple[str, str]:
    """Name or folder of a dataset, and which of its splits is wanted, "" if none is named: what follows an @ at the
    end of a path, unless a folder is called so."""
    if source.is_dir():
        return str(source), ""
    last, _, split = source.name.partition("@")
    return str(source.with_name(last) if last else source).removeprefix(HUB), split


def _dataset(source: Path, setting: str) -> Any:
    name, split = _split(source)
    try:
        import datasets
    except ImportError as error:
        raise _not_installed(source, setting) from error
    try:
        if any((Path(name) / file).is_file() for file in SAVED):
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, split=split or "train")
        if isinstance(found, datasets.DatasetDict):
            if (split or "train") not in found:
                raise InputError(f"{setting} is '{source}', which has the splits {', '.join(found)}: name one after @")
            found = found[split or "train"]
        for column, feature in found.features.items():
            if hasattr(feature, "decode"):  # a picture stays the file that it is
                found = found.cast_column(column, type(feature)(decode=False))
        return found
    except InputError:
        raise
    except Exception as error:  # of its many libraries' own
        reason = " ".join(str(error).split())
        if str(source).startswith(HUB) and os.environ.get(OFFLINE, "0") != "0":
            reason += f" ({OFFLINE} is set, as it is unless you say {OFFLINE}=0: only what is in the cache is read)"
        raise InputError(f"{setting} is '{source}', which can't be read: {reason}") from error


def _parquet(source: Path, setting: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise _not_installed(source, setting) from error
    return parquet.read_table(source).to_pylist()


def _not_installed(source: Path, setting: str) -> InputError:
    return InputError(f"{setting} is '{source}', which needs the package 'datasets': pip install 'branchgrpo[data]'")
