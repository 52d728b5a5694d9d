"""Prompts, and where they come from: text, JSON, parquet, Hugging Face datasets.

A prompt is its text. It may carry fields of its row besides (the text to be drawn, a reference picture), which rewards
read.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError

HUB = "hf:"
"""What the name of a dataset on the Hugging Face hub begins with; `@split` may follow it."""
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
    """All prompts of a file, a folder that `datasets` has saved, or `hf:NAME` of the hub.

    Rows are texts, or objects with the text under `column`; what else they hold are the prompt's fields. Rows without a
    text are left out, counted and named in a warning. Raises InputError, naming `setting`, if the source can't be read
    or no prompt is left.
    """
    prompts, bad = [], []
    for place, row in _rows(source, setting):
        text = row.get(column) if isinstance(row, Mapping) else row
        if isinstance(text, str) and (text := text.strip()):
            fields = {k: v for k, v in row.items() if k != column} if isinstance(row, Mapping) else {}
            prompts.append(Prompt(text, fields))
        else:
            bad.append(f"{place} has {f'no text {column!r}' if isinstance(row, Mapping) else 'no text'}")
    if bad:
        named = "; ".join([*bad[:NAMED], *(["..."] if len(bad) > NAMED else [])])
        total = len(bad) + len(prompts)
        logging.getLogger(__name__).warning("%s: %d of %d rows are left out: %s", setting, len(bad), total, named)
    if not prompts:
        raise InputError(f"{setting} is '{source}', which holds no prompt; write one per line")
    return prompts


def write_lines(prompts: Sequence[str]) -> str:
    """Prompts as JSON lines, of which `read_prompts` makes the same again."""
    return "".join(json.dumps({"prompt": str(p), **fields_of(p)}, ensure_ascii=False) + "\n" for p in prompts)


def _rows(source: Path, setting: str) -> Iterator[tuple[str, Any]]:
    """Each row, and what to call its place."""
    name = str(source)
    if name.startswith(HUB) or source.is_dir():
        yield from _numbered("row", _dataset(source, setting))
        return
    if not source.is_file():
        raise InputError(f"{setting} is '{source}'; no such file")
    try:
        if source.suffix == ".parquet":
            yield from _numbered("row", _parquet(source, setting))
        elif source.suffix == ".json":
            content = json.loads(source.read_text(encoding="utf-8"))
            if not isinstance(content, list):
                raise InputError(f"{setting} is '{source}', which holds no list of texts or objects")
            yield from _numbered("entry", content)
        elif source.suffix == ".jsonl":
            lines = source.read_text(encoding="utf-8").splitlines()
            yield from ((f"line {i}", _parsed(line)) for i, line in enumerate(lines, 1) if line.strip())
        elif source.suffix == ".txt":
            lines = source.read_text(encoding="utf-8").splitlines()
            yield from ((f"line {i}", line) for i, line in enumerate(lines, 1) if line.strip())
        else:
            raise InputError(f"{setting} is '{source}'; it must be one of {KINDS}, a folder of a dataset, or hf:NAME")
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


def _dataset(source: Path, setting: str) -> Any:
    name, _, split = str(source).removeprefix(HUB).partition("@")
    try:
        import datasets
    except ImportError as error:
        raise _not_installed(source, setting) from error
    try:
        if source.is_dir():
            found = datasets.load_from_disk(str(source))
            return found[split or "train"] if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # of its many libraries' own
        raise InputError(f"{setting} is '{source}', which can't be read: {' '.join(str(error).split())}") from error


def _parquet(source: Path, setting: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise _not_installed(source, setting) from error
    return parquet.read_table(source).to_pylist()


def _not_installed(source: Path, setting: str) -> InputError:
    return InputError(f"{setting} is '{source}', which needs the package 'datasets': pip install 'branchgrpo[data]'")
