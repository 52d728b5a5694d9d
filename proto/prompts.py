"""The prompts of a source: text, JSON, CSV, parquet, Hugging Face datasets."""

import csv
import gzip
import io
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic_core import PydanticSerializationError, to_jsonable_python

from .atomic_files import decoded
from .errors import InputError
from .pictures import FOLDER as PICTURES
from .pictures import PictureError, find_pictures
from .prompt import Prompt, fields_of, pictures_of
from .settings import PromptSettings

Row = tuple[str, Any]
"""What to call its place, and what stands there: a text, an object, or the ValueError of what can't be read."""
HUB = "hf:"
"""Prefix of the name of a dataset on the Hugging Face hub."""
OFFLINE = "HF_HUB_OFFLINE"
"""Variable that keeps the hub's libraries from the network. The command line sets it where it isn't."""
SAVED_DATASET = ("dataset_info.json", "dataset_dict.json")
"""One of them is in a folder that `datasets` has saved, and not in one that it would load files from."""
MAX_NAMED_ROWS = 5
"""Maximum number of bad rows that a warning names."""
PACKED = ".gz"
SHOWN = 300
"""Characters of what is wrong with a row."""
MAX_FIELD = 2**24
"""Characters of a field of a CSV file."""


def prompts_in(settings: PromptSettings, name: Literal["train", "held_out"], *, quiet: bool = False) -> list[Prompt]:
    """All prompts of a source that the settings name. Raises InputError as `read_prompts` does."""
    source = getattr(settings, name)
    return read_prompts(source, f"prompts.{name}", settings.column, settings.picture_column, quiet=quiet)


def read_prompts(
    source: Path, setting: str, column: str = "prompt", picture_column: str | None = None, *, quiet: bool = False
) -> list[Prompt]:
    """All prompts of a file, of a folder that `datasets` reads, or of `hf:NAME` of the hub (both with `@split`).

    Rows are texts, or objects with the text under `column`, and with a picture or a list of them under
    `picture_column`: paths that start in the source's folder, or files' bytes. What else they hold are the prompt's
    fields, as JSON has them: times are texts, bytes are in base64, NaN and infinity are null, a picture of a dataset is
    an object with `bytes` and `path`. Rows without a text, or with what JSON can't hold, are left out, counted and
    named in a warning, unless `quiet`. Raises InputError, naming `setting`, if the source can't be read, if no prompt
    is left, or for a row whose picture is missing or can't be read.
    """
    prompts, bad = [], []
    for place, found in _found(source, setting, column, picture_column):
        if isinstance(found, Prompt):
            prompts.append(found)
        else:
            bad.append(f"{place} has {' '.join(str(found).split())[:SHOWN]}")
    if bad and not quiet:
        named = "; ".join([*bad[:MAX_NAMED_ROWS], *(["..."] if len(bad) > MAX_NAMED_ROWS else [])])
        total = len(bad) + len(prompts)
        logging.getLogger(__name__).warning("%s: %d of %d rows are left out: %s", setting, len(bad), total, named)
    if not prompts:
        raise InputError(f"{setting} is '{source}', which holds no prompt{f': {bad[0]}' if bad else ''}")
    return prompts


def first_prompt(settings: PromptSettings) -> Prompt:
    """The first prompt to train on; of the rows after it nothing is looked at. Raises InputError as `read_prompts`."""
    found = _found(settings.train, "prompts.train", settings.column, settings.picture_column)
    prompts = (prompt for _, prompt in found if isinstance(prompt, Prompt))
    if (first := next(prompts, None)) is None:
        raise InputError(f"prompts.train is '{settings.train}', which holds no prompt")
    return first


def _found(
    source: Path, setting: str, column: str, picture_column: str | None
) -> Iterator[tuple[str, Prompt | ValueError]]:
    """Place and prompt of every row, or what the row has instead."""
    folder = named if (named := Path(_split(source)[0])).is_dir() else source.parent
    for place, row in _rows(source, setting, column):
        try:
            yield place, _prompt(row, column, picture_column, folder)
        except PictureError as error:
            raise InputError(f"{setting} is '{source}': {place} has {error}") from error
        except ValueError as error:
            yield place, error


def _prompt(row: Any, column: str, picture_column: str | None, folder: Path) -> Prompt:
    """The prompt of a row. Raises ValueError that says what the row has instead, PictureError for its picture."""
    if isinstance(row, ValueError):
        raise row
    text, fields = row, {}
    if isinstance(row, Mapping):
        text, fields = row.get(column), {name: value for name, value in row.items() if name != column}
        if column not in row:
            raise ValueError(f"no text {column!r}, of prompts.column; there are {', '.join(map(str, row))}")
    if not isinstance(text, str) or not (text := text.strip()):
        raise ValueError("no text")
    if "\0" in text:
        raise ValueError("a NUL in its text")
    if not _is_unicode(text):
        raise ValueError("half a character (a lone surrogate) in its text")
    given = fields.pop(picture_column, None) if picture_column else None
    try:
        fields = to_jsonable_python(fields, bytes_mode="base64", inf_nan_mode="null")
        if not _is_unicode(json.dumps(fields, ensure_ascii=False)):
            raise ValueError("half a character (a lone surrogate)")
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise ValueError(f"a field that can't be kept: {error}") from error
    return Prompt(text, fields, find_pictures(given, picture_column, folder) if picture_column else ())


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_lines(prompts: Sequence[str], column: str = "prompt", picture_column: str | None = None) -> str:
    """Prompts as JSON lines, of which `read_prompts` makes the same again, with pictures in the folder `PICTURES`."""

    def row(prompt: str) -> dict[str, Any]:
        pictures = [f"{PICTURES}/{picture.name}" for picture in pictures_of(prompt)]
        return {column: str(prompt), **fields_of(prompt), **({picture_column: pictures} if picture_column else {})}

    return "".join(json.dumps(row(prompt)) + "\n" for prompt in prompts)


def _rows(source: Path, setting: str, column: str) -> Iterator[Row]:
    name, _ = _split(source)
    if str(source).startswith(HUB) or (os.path.isdir(name) and not os.path.isfile(source)):
        yield from _numbered("row", _dataset(source, setting))
        return
    if not os.path.exists(source):
        raise InputError(f"{setting} is '{source}'; no such file")
    inner = source.with_suffix("") if source.suffix.lower() == PACKED else source
    read = READERS.get(inner.suffix.lower())
    if not read or not source.is_file():  # a pipe would be waited for
        kinds = f"{', '.join(READERS)}, each as {PACKED} too"
        raise InputError(f"{setting} is '{source}'; it must be one of {kinds}, a folder of a dataset, or hf:NAME")
    try:
        content = source.read_bytes()
        yield from read(content if inner == source else gzip.decompress(content), column)
    except ImportError as error:
        raise _not_installed(source, setting) from error
    except (OSError, ValueError, EOFError, zlib.error, csv.Error) as error:
        raise _unreadable(source, setting, error) from error


def _unreadable(source: Path, setting: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return InputError(f"{setting} is '{source}', which can't be read: {reason}")


def _numbered(kind: str, rows: Iterable[Any]) -> Iterator[Row]:
    return ((f"{kind} {number}", row) for number, row in enumerate(rows, start=1))


def _lines(content: bytes, column: str) -> Iterator[Row]:
    return ((place, line) for place, line in _numbered("line", decoded(content).split("\n")) if line.strip())


def _json_lines(content: bytes, column: str) -> Iterator[Row]:
    return ((place, _parsed(line)) for place, line in _lines(content, column))


def _json(content: bytes, column: str) -> Iterator[Row]:
    """A list of rows; or JSON lines, which are often called so too."""
    if not decoded(content).lstrip().startswith("["):
        return _json_lines(content, column)
    rows = _parsed(decoded(content))
    if isinstance(rows, ValueError):
        raise rows
    return _numbered("entry", rows)


def _parsed(text: str) -> Any:
    """The value of a JSON text, or a ValueError that says what is wrong with it."""
    try:
        return json.loads(text)
    except RecursionError:
        return ValueError("JSON that is nested too deeply")
    except ValueError as error:
        return ValueError(f"no JSON: {error}")


def _table(content: bytes, column: str) -> Iterator[Row]:
    """A table with a header, separated by whichever of `,`, `;` and tabulators makes `column` one of its names."""
    text = decoded(content)
    csv.field_size_limit(MAX_FIELD)
    headers: dict[str, list[str]] = {separator: next(_cells(text, separator), []) for separator in ",\t;"}
    separator = next((separator for separator, header in headers.items() if column in header), None)
    if separator is None:
        header = text.partition("\n")[0][:200]
        raise ValueError(f"its first line, the header, has no {column!r}, of prompts.column: {header}")
    rows = _cells(text, separator, strict=True)
    names = next(rows)
    if len(set(names)) < len(names):
        raise ValueError(f"its header names a column twice: {', '.join(names)}")
    try:
        for row in filter(None, rows):
            wrong = len(row) != len(names)
            found = ValueError(f"{len(row)} of {len(names)} columns") if wrong else dict(zip(names, row, strict=True))
            yield f"line {rows.line_num}", found
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from error


def _cells(text: str, separator: str, strict: bool = False) -> Any:
    """The rows of a table, without blanks around a separator."""
    return csv.reader(io.StringIO(text), delimiter=separator, strict=strict, skipinitialspace=True)


def _parquet(content: bytes, column: str) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    return _numbered("row", parquet.read_table(pyarrow.BufferReader(content)).to_pylist())


READERS: dict[str, Callable[[bytes, str], Iterator[Row]]] = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".parquet": _parquet,
}
"""Suffix of a file, in small letters -> its rows."""


def _split(source: Path) -> tuple[str, str]:
    """Name or folder of a dataset, and which of its splits is wanted, "" if none is named: what follows an @ at the
    end of a path, unless a folder is called so."""
    if os.path.isdir(source):
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
        if any((Path(name) / file).is_file() for file in SAVED_DATASET):
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, split=split or "train")
        if isinstance(found, datasets.DatasetDict):
            if (split or "train") not in found:
                raise InputError(f"{setting} is '{source}', which has the splits {', '.join(found)}: name one after @")
            found = found[split or "train"]
        features = {column: _undecoded(feature) for column, feature in found.features.items()}
        return found.cast(datasets.Features(features))
    except InputError:
        raise
    except Exception as error:  # of its many libraries' own
        reason = " ".join(str(error).split())
        if not str(source).startswith(HUB):
            reason = f"it holds no dataset ({reason})"
        elif os.environ.get(OFFLINE, "0") != "0":
            reason += f" ({OFFLINE} is set, as it is unless you say {OFFLINE}=0: only what is in the cache is read)"
        raise InputError(f"{setting} is '{source}', which can't be read: {reason}") from error


def _undecoded(feature: Any) -> Any:
    """The type of a column whose pictures stay the files that they are, within lists and objects too."""
    if isinstance(feature, dict):
        return {name: _undecoded(own) for name, own in feature.items()}
    if hasattr(feature, "feature"):
        return replace(feature, feature=_undecoded(feature.feature))
    return replace(feature, decode=False) if hasattr(feature, "decode") else feature


def _not_installed(source: Path, setting: str) -> InputError:
    return InputError(f"{setting} is '{source}', which needs the package 'datasets': pip install 'branchgrpo[data]'")
