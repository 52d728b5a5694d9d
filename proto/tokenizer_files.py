"""The files that hold the words of a tokenizer. Without them transformers makes one that knows none."""

from collections.abc import Mapping
from pathlib import Path


def missing_vocabulary(folder: Path, names: Mapping[str, str]) -> str | None:
    """What a folder lacks of the files of a tokenizer, its class' `vocab_files_names`; None if it has them.

    One file may hold all of it (`tokenizer_file`), or several may together. A class without files has its words itself.
    """
    parts = dict(names)
    whole = parts.pop("tokenizer_file", "tokenizer.json")
    if not names or (folder / whole).is_file():
        return None
    if parts and all((folder / name).is_file() for name in parts.values()):
        return None
    return f"{whole}, or {' and '.join(parts.values())}" if parts else whole
