"""Models in a single .safetensors file, as ComfyUI and Civitai have them: converted once into a diffusers folder."""

import os
import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import diffusers
from filelock import FileLock

from ...proto.atomic_files import whole
from ...proto.errors import InputError
from .folder import INDEX, Part, StoredTensor, find_parts, read_headers, read_index
from .weights import DTYPES, check_dtypes, one_line

PART_PREFIXES = {
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.", "text_encoders."),
}
"""How the names begin of the parts that a file may hold beside the network, and how those of their weights begin."""


def converted(file: Path, config: Path) -> Path:
    """The diffusers folder of the model in `file`, made by the first call for this file.

    It is kept in `~/.cache/branchgrpo/models` (or below `XDG_CACHE_HOME`). The parts are built as those of the folder
    `config`, from which those are linked that the file doesn't hold. Raises InputError if there is no such file, or it
    can't be read as what the folder describes.
    """
    if not file.is_file():
        raise InputError(f"policy.pretrained is '{file}'; there is no such file")
    about = file.stat()
    key = repr((str(file.resolve()), about.st_size, about.st_mtime_ns, str(config.resolve())))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "branchgrpo" / "models"
    folder = cache / sha256(key.encode()).hexdigest()[:16] / file.stem
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / "lock"):  # several processes of a run begin at once
            if not folder.is_dir():
                with whole(folder) as temporary:
                    _convert(file, config, temporary)
    return folder


def _convert(file: Path, config: Path, to: Path) -> None:
    """Write what the file holds into the folder `to`, and link the other parts."""
    name, stored = read_index(config)["_class_name"], read_headers([file])
    parts = {key: part for key, part in find_parts(config).items() if part}
    check_dtypes(stored)
    try:
        models = _load(file, config, getattr(diffusers, name), parts, stored)
        for key, model in models.items():
            if absent := [weight for weight, value in model.state_dict().items() if value.is_meta]:
                raise InputError(f"it lacks {len(absent)} weights of the {key}, such as '{absent[0]}'")
    except Exception as error:  # of a library, over files of whatever kind
        raise InputError(
            f"policy.pretrained is '{file}', which can't be read as a {name} with policy.config '{config}': "
            f"{one_line(error)}"
        ) from error
    to.mkdir()
    for key in parts:
        if key in models:
            models[key].save_pretrained(to / key, safe_serialization=True)
        elif (config / key).exists():
            (to / key).symlink_to((config / key).resolve())
    shutil.copyfile(config / INDEX, to / INDEX)


def _load(
    file: Path, config: Path, pipeline_class: Any, parts: dict[str, Part], stored: dict[str, StoredTensor]
) -> dict[str, Any]:
    """The models that a file holds, by the pipeline's names, in the number format of most of its weights."""
    networks = [key for key in parts if key.startswith(("transformer", "unet"))]
    if len(networks) > 1:
        raise InputError("this model has two networks, and a file holds one")
    kinds = tuple(kind for kind, begins in PART_PREFIXES.items() if any(tensor.startswith(begins) for tensor in stored))
    beside = [key for key in parts if key.startswith(kinds)] if kinds else []
    ((dtype, _),) = Counter(tensor.dtype for tensor in stored.values()).most_common(1)
    given = {"config": str(config), "dtype": DTYPES[dtype], "local_files_only": True}
    if not beside:
        (key,) = networks
        return {key: getattr(diffusers, parts[key].class_name).from_single_file(str(file), subfolder=key, **given)}
    held = [*networks, *beside]
    absent = dict.fromkeys(key for key in parts if key not in held)
    pipeline = pipeline_class.from_single_file(str(file), **given, **absent)
    return {key: getattr(pipeline, key) for key in held}
