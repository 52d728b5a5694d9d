"""Pictures that come with prompts, known by their content. Policies start from them, and rewards see them."""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from .atomic_files import whole
from .errors import InputError

FOLDER = "pictures"
"""Folder with copies of the pictures of prompts, beside the file of prompts."""


Pixels = npt.NDArray[np.uint8]
"""uint8 [height, width, 3]."""
READ_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for files that it can't read."""


DEEP = ("I", "F")
"""Pillow's modes of grey of 32 bits."""


class UnknownWhite(ValueError):
    """A picture in grey of 32 bits."""


class PictureError(Exception):
    """There is no picture in a row, or none that can be read. Its text goes on from "the row has"."""


@dataclass(frozen=True)
class Picture:
    """A picture of a prompt. Two with the same content are equal."""

    name: str
    """A digest of the file's content, with the suffix of its format."""
    source: Path | bytes | Pixels | None = field(default=None, compare=False, repr=False)
    """Path of the picture's file, its content, or its pixels; None where only the name is known."""

    def content(self) -> bytes:
        """The file's content. Raises InputError if it can't be read."""
        if isinstance(self.source, bytes):
            return self.source
        if not isinstance(self.source, Path):
            raise InputError(f"of the picture {self.name} there is no file")
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise InputError(f"the picture '{self.source}' can't be read: {error.strerror}") from error

    def image(self) -> Image.Image:
        """The picture in RGB, as its camera held it. Raises InputError if it can't be read."""
        if isinstance(self.source, np.ndarray):
            return Image.fromarray(self.source)
        try:
            with Image.open(io.BytesIO(self.content())) as stored:
                return in_rgb(ImageOps.exif_transpose(stored))
        except READ_ERRORS as error:  # of Pillow, for damaged files
            raise InputError(f"the picture {self.name} can't be decoded: {error}") from error

    def fitted(self, height: int, width: int) -> Image.Image:
        """The picture in another size, the middle of it where its sides have another ratio. Raises as `image` does."""
        return ImageOps.fit(self.image(), (width, height), Image.Resampling.LANCZOS)

    def pixels(self) -> Pixels:
        """The picture as an array, uint8 [height, width, 3]. Raises as `image` does."""
        return np.asarray(self.image())

    def kept_in(self, folder: Path) -> "Picture":
        """The same picture, read from its copy in a folder."""
        return replace(self, source=folder / self.name)


def in_rgb(image: Image.Image) -> Image.Image:
    """A picture in RGB. Raises UnknownWhite for grey of 32 bits."""
    if image.mode in DEEP:
        raise UnknownWhite(f"its grey is of Pillow's mode {image.mode}; 8 and 16 bits are read")
    # Pillow clips 16-bit grey at 255 instead of scaling it
    return (image.point(lambda value: value / 257) if image.mode.startswith("I;16") else image).convert("RGB")


def find_pictures(value: Any, column: str, folder: Path) -> list[Picture]:
    """The pictures that a row's `column` holds: a path that starts in `folder`, a file's bytes, an object with `bytes`
    or `path`, or a list of these. Raises PictureError if there is none, or one can't be read."""
    given = value if isinstance(value, list) else [value]
    if not given or not all(given):
        raise PictureError(f"no picture in '{column}', of prompts.picture_column")
    return [_find(one, column, folder) for one in given]


def _find(value: Any, column: str, folder: Path) -> Picture:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        try:
            return Picture(_name(value), value)
        except READ_ERRORS as error:
            raise PictureError(f"bytes in '{column}' that are no picture: {error}") from error
    if not isinstance(value, str) or "\0" in value:
        raise PictureError(f"neither a path nor bytes in '{column}', of prompts.picture_column")
    path = folder / Path(value).expanduser()
    try:
        facts = path.stat()
        return Picture(_name_of_file(path.resolve(), facts.st_size, facts.st_mtime_ns), path.resolve())
    except (*READ_ERRORS, RuntimeError) as error:
        no_picture = "it is no picture in a format that Pillow reads"
        reason = str(error) if isinstance(error, UnknownWhite) else getattr(error, "strerror", None) or no_picture
        raise PictureError(f"in '{column}' the picture '{path}', which can't be read: {reason}") from error


@cache
def _name_of_file(path: Path, size: int, modified: int) -> str:
    return _name(path.read_bytes())


def _name(content: bytes) -> str:
    with Image.open(io.BytesIO(content)) as stored:
        in_rgb(Image.new(stored.mode, (1, 1)))  # what can't be shown is told before the run, and not decoded for that
        return f"{sha256(content).hexdigest()[:32]}.{(stored.format or 'picture').lower()}"


def keep(pictures: Iterable[Picture], folder: Path) -> None:
    """Copy pictures into a folder, each under its name, those that aren't there."""
    for picture in pictures:
        copy = folder / picture.name
        if not copy.exists():
            with whole(copy) as temporary:
                temporary.write_bytes(picture.content())
