"""Untrusted picture files: their size is checked before they are decoded, and none of their content is run."""

import io
import math
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..proto.media import Pictures
from ..proto.pictures import in_rgb

MAX_SCANS = 64
"""Maximum scans of a JPEG. A progressive one has about ten; each takes the time of the whole picture, and 35 bytes."""

Opened = tuple[tuple[int, int, int], Callable[[], Pictures]]
"""Number, height and width of the pictures that a file says it holds, and what decodes them."""


def opened(file: BinaryIO) -> Opened:
    """What `file` (a PNG, a JPEG or a .npy) says it holds, and what decodes it, by its first bytes.

    Raises whatever the decoders raise on bytes made to harm, ValueError for what isn't accepted.
    """
    magic = np.lib.format.MAGIC_PREFIX
    start = file.read(len(magic))
    file.seek(0)
    return _opened_array(file) if start == magic else _opened_image(file)


def _opened_array(file: BinaryIO) -> Opened:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("it is pickled, which is never read")
    if dtype != np.uint8 or len(shape) not in (3, 4) or shape[-1] != 3 or min(shape) < 1:
        raise ValueError(f"it is {dtype} {list(shape)}")
    # checked here because numpy takes the memory that the header claims before it reads
    start = file.tell()
    there = file.seek(0, io.SEEK_END) - start
    if math.prod(shape) > there:
        raise ValueError(f"it is truncated: {list(shape)} in {there} bytes")
    file.seek(0)
    count, height, width = shape[:-1] if len(shape) == 4 else (1, *shape[:-1])
    return (count, height, width), lambda: np.load(file, allow_pickle=False).reshape(count, height, width, 3)


def _opened_image(file: BinaryIO) -> Opened:
    """The pixels as stored: transparency is dropped, and a rotation that the EXIF asks for is not made."""
    scans = file.read().count(b"\xff\xda")  # of a JPEG: those two bytes stand nowhere else in what is compressed
    file.seek(0)
    try:
        image: Image.Image = Image.open(file, formats=("PNG", "JPEG"))
    except UnidentifiedImageError as error:
        raise ValueError("it is none of them") from error
    if image.format in ("JPEG", "MPO") and scans > MAX_SCANS:  # Pillow opens as MPO what names further pictures
        raise ValueError(f"it has {scans} scans; at most {MAX_SCANS} are accepted")

    def pixels() -> Pictures:
        return np.asarray(in_rgb(image))[None]

    return (1, image.height, image.width), pixels
