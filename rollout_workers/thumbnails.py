"""Thumbnails: small pictures of a tree's nodes, as WebP, for those who look at the tree afterwards."""

import io
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..proto.schedule import Schedule

MAX_PIXELS = 2**22
"""Pixels of all thumbnails of a tree together, with all frames of clips."""
MAX_SIDE = 256
"""Pixels of a thumbnail's longer side."""
LOSSLESS_PIXELS = 2**14
"""A picture with at most so many pixels is kept as it is: WebP's blur would hide its details."""
MAX_FRAMES = 8
"""Frames that are kept of a clip."""
CLIP_SECONDS = 2.0
"""Duration of a clip's thumbnail."""
QUALITY = 80
"""Of pictures that are not kept as they are."""


def thumbnails(media: npt.NDArray[np.uint8], schedule: Schedule) -> Iterator[bytes]:
    """Each picture, uint8 [n, height, width, 3], or clip [n, frames, height, width, 3], of one of a tree's nodes.

    The more leaves and splits the tree has, the smaller they are. A clip is an animation.
    """
    frames = 1 if media.ndim == 4 else min(media.shape[1], MAX_FRAMES)
    height, width = media.shape[-3:-1]
    share = MAX_PIXELS / (frames * (schedule.leaves + len(split_nodes(schedule))))
    shrunk = min(1.0, MAX_SIDE / max(height, width), math.sqrt(share / (height * width)))
    size = max(1, round(width * shrunk)), max(1, round(height * shrunk))
    for picture in media:
        chosen = np.linspace(0, len(picture) - 1, frames).round().astype(int)
        yield _webp([Image.fromarray(frame) for frame in (picture[None] if media.ndim == 4 else picture[chosen])], size)


def split_nodes(schedule: Schedule) -> npt.NDArray[np.int64]:
    """The nodes of a tree that are split, int64 [n]."""
    splits = [depth for depth, step in enumerate(schedule.steps) if step.children > 1]
    return np.flatnonzero(np.isin(schedule.depth, splits))


def _webp(frames: list[Image.Image], size: tuple[int, int]) -> bytes:
    lossless = frames[0].width * frames[0].height <= LOSSLESS_PIXELS
    effort = {"lossless": True, "quality": 0, "method": 0} if lossless else {"quality": QUALITY}
    if frames[0].size != size:
        frames = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
    file, more = io.BytesIO(), {}
    if len(frames) > 1:
        more = {"save_all": True, "append_images": frames[1:], "duration": int(1000 * CLIP_SECONDS / len(frames))}
    frames[0].save(file, format="WEBP", **effort, **more)
    return file.getvalue()
