"""Whether the files of a pipeline's parts hold exactly the weights that their classes expect.

Known before any weight is read: the models are built without numbers and compared with the headers of the files.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines import ltx2

from ...proto.errors import InputError
from ...proto.tokenizer_files import missing_vocabulary
from .diffusers_internals import ignored_weights, rename_old_weights
from .folder import WEIGHTS, Part, StoredTensor, read_headers, read_json, weight_files

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
"""safetensors' names of what weights and buffers may be stored in."""


def find_problems(parts: Iterable[Part]) -> list[str]:
    """The defects that keep parts of a pipeline from being loaded, a line for each part with defects."""
    found = []
    for part in parts:
        try:
            check_part(part)
        except InputError as error:
            found.append(str(error))
        except OSError as error:
            found.append(f"{part.folder} can't be read: {error.strerror or error}")
    return found


def check_part(part: Part) -> None:
    """Hold the files of a part against its class. Raises InputError, naming the file, and the first weight if any."""
    if not part.folder.is_dir():
        reason = "no folder" if part.folder.exists() else "missing"
        raise InputError(f"{part.folder}, a {part.class_name}: {reason}")
    if part.name.startswith(("tokenizer", "processor")):
        _check_vocabulary(part)
    if not part.has_weights:
        return
    if part.library not in WEIGHTS:
        raise InputError(
            f"{part.folder}, a {part.class_name} of '{part.library}': only diffusers' and transformers' are known"
        )
    config = read_json(part.folder / "config.json")
    if "quantization_config" in config:
        raise InputError(f"{part.folder} is quantized (its config.json has a quantization_config); {UNQUANTIZED}")
    stored = read_headers(weight_files(part))
    check_dtypes(stored)
    differences = _transformers_differences if part.library == "transformers" else _diffusers_differences
    try:
        missing, unexpected, misshapen = differences(part, stored)
    except Exception as error:  # of a library, over a configuration that it doesn't understand
        raise InputError(f"{part.folder / 'config.json'} makes no {part.class_name}: {one_line(error)}") from error
    explain(part.class_name, stored, missing, unexpected, misshapen, part.folder)


def _check_vocabulary(part: Part) -> None:
    """Raises InputError for a tokenizer, or a processor that has one, without its words."""
    name = part.class_name
    if "Tokenizer" not in name:
        file = part.folder / "tokenizer_config.json"
        name = str(read_json(file).get("tokenizer_class")) if file.is_file() else ""
    if missing := missing_vocabulary(part.folder, getattr(getattr(transformers, name, None), "vocab_files_names", {})):
        raise InputError(f"{part.folder}, a {part.class_name}: its vocabulary is missing ({missing})")


UNQUANTIZED = "take the pipeline's weights in bfloat16, float16 or float32"


def check_dtypes(stored: Mapping[str, StoredTensor]) -> None:
    """Raises InputError for weights in a format that is more than numbers, such as float8 with scales beside it."""
    if odd := [name for name, tensor in stored.items() if tensor.dtype not in DTYPES]:
        tensor = stored[odd[0]]
        raise InputError(f"{tensor.file} holds '{odd[0]}' as {tensor.dtype}{_more(len(odd))}; {UNQUANTIZED}")


def explain(
    class_name: str,
    stored: Mapping[str, StoredTensor],
    missing: Iterable[str],
    unexpected: Iterable[str],
    misshapen: Mapping[str, tuple[int, ...]],
    folder: Path,
) -> None:
    """Raises InputError, naming the first, if weights of a `class_name` are missing, unexpected or `misshapen` (name ->
    the shape that it should have)."""
    missing, unexpected = sorted(missing), sorted(unexpected)
    files = sorted({tensor.file for tensor in stored.values()})
    place = files[0] if len(files) == 1 else folder
    for mark, remedy in REMEDIES.items():
        if marked := [name for name in unexpected if mark in name]:
            raise InputError(f"{stored[marked[0]].file} holds '{marked[0]}'{_more(len(marked))}: {remedy}")
    if missing:
        raise InputError(f"{place} lacks '{missing[0]}' of a {class_name}{_more(len(missing))}")
    if unexpected:
        file = stored[unexpected[0]].file if unexpected[0] in stored else place
        raise InputError(
            f"{file} holds '{unexpected[0]}', which is no weight of this {class_name}{_more(len(unexpected))}"
        )
    for name, expected in sorted(misshapen.items()):
        found = stored[name].shape if name in stored else "another shape"
        file = stored[name].file if name in stored else place
        raise InputError(
            f"{file} holds '{name}' of shape {_sides(found)}; this {class_name} has {_sides(expected)}"
            f"{_more(len(misshapen))}"
        )


REMEDIES = {
    ".base_layer.": "adapters of PEFT lie around its weights; merge them (merge_and_unload) and save it again",
    "lora_": "adapters lie beside its weights; merge them (fuse_lora, unload_lora_weights) and save it again",
    ".to_qkv.": "its projections are fused; undo that (unfuse_qkv_projections) and save it again",
    ".to_added_qkv.": "its projections are fused; undo that (unfuse_qkv_projections) and save it again",
    ".to_kv.": "its projections are fused; undo that (unfuse_qkv_projections) and save it again",
}
"""Part of a name that doesn't belong -> what it comes from, and what to do."""


def _more(count: int) -> str:
    return f", and {count - 1} more" if count > 1 else ""


def _sides(shape: Any) -> str:
    return shape if isinstance(shape, str) else "x".join(map(str, shape)) or "()"


def one_line(error: BaseException) -> str:
    """The message of an error on one line; its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


Differences = tuple[Iterable[str], Iterable[str], Mapping[str, tuple[int, ...]]]
"""Names that are missing, names that don't belong, and name -> expected shape of those that have another."""


def without_numbers(part: Part) -> Any:
    """A diffusers model with shapes in place of weights."""
    network_class = getattr(diffusers, part.class_name, None) or getattr(ltx2, part.class_name)
    config = network_class.load_config(part.folder, local_files_only=True)
    with torch.device("meta"):
        return network_class.from_config(config)


def _diffusers_differences(part: Part, stored: Mapping[str, StoredTensor]) -> Differences:
    model = without_numbers(part)
    expected, found = model.state_dict(), {name: tensor.shape for name, tensor in stored.items()}
    if not (part.folder / "diffusion_pytorch_model.safetensors.index.json").is_file():
        rename_old_weights(model, found)
    return compare(expected, found, ignored_weights(model))


def compare(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()
) -> Differences:
    """The differences between the names and shapes `found` and those of the tensors `expected`."""
    unexpected = [
        name for name in found.keys() - expected.keys() if not any(re.search(pattern, name) for pattern in ignored)
    ]
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    misshapen = {name: shapes[name] for name in found.keys() & shapes.keys() if found[name] != shapes[name]}
    return expected.keys() - found.keys(), unexpected, misshapen


def _transformers_differences(part: Part, stored: Mapping[str, StoredTensor]) -> Differences:
    """The differences that transformers reports when it loads: it knows tied weights and the names of older files."""
    transformers.utils.logging.disable_progress_bar()
    model_class = getattr(transformers, part.class_name)
    empty = {
        name: torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype], device="meta") for name, tensor in stored.items()
    }
    _, told = model_class.from_pretrained(
        None,
        config=model_class.config_class.from_pretrained(part.folder, local_files_only=True),
        state_dict=empty,
        device_map="meta",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    misshapen = {name: tuple(expected) for name, _, expected in told["mismatched_keys"]}
    return told["missing_keys"], told["unexpected_keys"], misshapen
