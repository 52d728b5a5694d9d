"""The folder of a diffusers pipeline: its index, its parts, and their files. Reads no weights, and needs no torch."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ...proto.errors import InputError

INDEX = "model_index.json"
WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
"""Library -> the file of a part's weights."""
SAMPLES, SAMPLE_BYTES = 16, 4096
"""Bytes that are read from a file to tell it from others."""

EXPORTED = {"ltx2": "diffusers", "stable_audio": "diffusers"}
"""Modules of pipelines, as an index names them, whose classes are a library's."""
MODELS = (
    *("transformer", "unet", "vae", "audio_vae", "vocoder"),
    *("text_encoder", "image_encoder", "projection_model", "connectors"),
)
"""How the names begin of parts that are models, not tokenizers or schedulers."""


@dataclass(frozen=True)
class Part:
    """A part of a pipeline, as its index names it."""

    name: str
    library: str
    class_name: str
    folder: Path
    variant: str | None = None
    """Variant of its weights, such as fp16: part of the files' names."""

    @property
    def has_weights(self) -> bool:
        """Whether it is a model, and no tokenizer or scheduler."""
        return self.name.startswith(MODELS)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, of which only the file's header was read."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """safetensors' name: F32, BF16, F8_E4M3."""


def read_index(folder: Path) -> dict[str, Any]:
    """The index of the pipeline in `folder`. Raises InputError, naming the file, if there is none or it is broken."""
    index = read_json(folder / INDEX)
    if not isinstance(name := index.get("_class_name"), str):
        raise InputError(
            f"{folder / INDEX} names the class {name!r}; it must be the name of a diffusers pipeline (modular and "
            "custom pipelines can't be read)"
        )
    return index


def find_parts(folder: Path, variant: str | None = None) -> dict[str, Part | None]:
    """The parts of a pipeline, by name; None for those that it does without, such as SD 3.5 without T5.

    As in diffusers, parts that have weights of the variant are taken with these, and the others as they are. Raises
    InputError as `read_index` does, for an entry of the index that names no class, or if no part has the variant.
    """
    lists = {name: value for name, value in read_index(folder).items() if isinstance(value, list)}
    # A list of numbers is a setting, such as noise levels of a distilled model.
    named = {name: value for name, value in lists.items() if not value or not isinstance(value[0], float | int)}
    for name, value in named.items():
        if len(value) != 2 or not all(entry is None or isinstance(entry, str) for entry in value):
            raise InputError(f"{folder / INDEX} says of {name} {value!r}; it must be a library and a class")
    parts = {
        name: _of_variant(Part(name, EXPORTED.get(value[0]) or value[0], value[1], folder / name), variant)
        if value[0] and value[1]
        else None
        for name, value in named.items()
    }
    if variant and not any(part and part.variant for part in parts.values()):
        raise InputError(f"policy.variant is '{variant}'; no part of {folder} has weights of this variant")
    return parts


def _of_variant(part: Part, variant: str | None) -> Part:
    """The part with the variant, if it has weights of it."""
    other = replace(part, variant=variant)
    there = variant and part.has_weights and part.library in WEIGHTS
    return other if there and any(file.is_file() for file in _weights_names(other)) else part


def _weights_names(part: Part) -> tuple[Path, Path]:
    """The file of a part's weights, and the index in whose place there are several."""
    infix = f".{part.variant}" if part.variant else ""
    name = WEIGHTS[part.library]
    return (
        part.folder / f"{name.removesuffix('.safetensors')}{infix}.safetensors",
        part.folder / f"{name}.index{infix}.json",
    )


def weight_files(part: Part) -> list[Path]:
    """The files that are loaded of a part, which may lie beside other variants: those that an index lists, or the one.

    Raises InputError, naming the file, if one isn't there.
    """
    single, index = _weights_names(part)
    # Where both are there, transformers takes the one file, and diffusers the index.
    if os.path.lexists(index) and not (part.library == "transformers" and single.is_file()):
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()) or not listed:
            raise InputError(f"{index} has no weight_map, which says in which file each weight is")
        files = [part.folder / name for name in sorted(set(listed.values()))]
    else:
        files = [single]
    if absent := [file for file in files if not file.is_file()]:
        more = f" and {len(absent) - 1} more files" if len(absent) > 1 else ""
        raise InputError(f"{absent[0]}{more}, weights of a {part.class_name}: {_why_absent(absent[0])}")
    return files


def content_fingerprint(folder: Path, variant: str | None = None) -> str:
    """Tells pipelines with other weights apart, wherever they lie: a digest of samples of every file of weights.

    Cheap: reads 64 kB of each file. Training moves all weights, so that samples differ. Raises InputError as
    `weight_files` does.
    """
    digest = sha256()
    parts = {name: part for name, part in find_parts(folder, variant).items() if part and part.has_weights}
    for name, part in sorted(parts.items()):
        for file in weight_files(part):
            size = file.stat().st_size
            digest.update(f"{name} {size}\n".encode())
            with open(file, "rb") as content:
                for sample in range(SAMPLES):
                    content.seek(max(size - SAMPLE_BYTES, 0) * sample // (SAMPLES - 1))
                    digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _why_absent(file: Path) -> str:
    if file.is_symlink():
        return f"a link to {os.readlink(file)}, which isn't there"
    if file.exists():
        return "no file"
    variants = sorted({path.name.split(".")[-2] for path in file.parent.glob("*.*.safetensors")} - {"index"})
    variants = [name for name in variants if not name.split("-")[0].isdigit()]
    if variants:
        return f"missing; there are files of the variant {variants[0]} only, which policy.variant={variants[0]} takes"
    if any(file.parent.glob("*.bin")):
        return (
            "missing; there is a .bin, and weights that are pickled are not read: they could run code. Save them again "
            "as safetensors"
        )
    return "missing"


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """The tensors of safetensors files, by name. Raises InputError, naming the file, for one that isn't whole."""
    tensors = {}
    for file in files:
        with opened(file) as stored:
            for name in stored.keys():  # noqa: SIM118 - no mapping
                tensor = stored.get_slice(name)
                tensors[name] = StoredTensor(file, tuple(tensor.get_shape()), tensor.get_dtype())
    return tensors


@contextmanager
def opened(file: Path, framework: str = "numpy") -> Iterator[Any]:
    """An open safetensors file. Raises InputError, naming it, if it can't be read."""
    try:
        with safe_open(file, framework=framework) as stored:
            yield stored
    except (OSError, SafetensorError) as error:
        reason = "it is a pointer of Git LFS; fetch the file itself with `git lfs pull`" if _is_pointer(file) else error
        raise InputError(f"{file} is no whole safetensors file: {reason}") from error


def _is_pointer(file: Path) -> bool:
    try:
        with open(file, "rb") as raw:
            return raw.read(40).startswith(b"version https://git-lfs")
    except OSError:
        return False


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError, naming the file, if there is none."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        reason = "a link to nowhere" if file.is_symlink() else error.strerror
        raise InputError(f"{file} can't be read: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is broken: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} is broken: it holds no JSON object")
    return content
