"""Thumbnails: small pictures of a tree's nodes, as WebP, and its sounds, for those who look at the tree afterwards."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..proto.media import Media, Pictures, some_frames
from ..proto.schedule import Schedule
from ..proto.webp import webp

MAX_PIXELS = 2**22
"""Pixels of all thumbnails of a tree together, with all frames of clips."""
MAX_SIDE = 256
"""Pixels of a thumbnail's longer side."""
MAX_FRAMES = 8
"""Frames that a thumbnail keeps of a clip."""
MAX_PLAYABLE_BYTES = 2**21
"""About so many bytes what plays of a tree's leaves takes together, unless they are very many or long."""
THUMBNAIL_MILLISECONDS = 250
"""Duration of a frame of a clip's thumbnail."""


def thumbnails(looks: Pictures, count: int) -> Iterator[bytes]:
    """Each picture, uint8 [n, height, width, 3], or clip [n, frames, height, width, 3], of `count` of one tree.

    The larger `count` is, the smaller they are. A clip is an animation of some of its frames.
    """
    frames = 1 if looks.ndim == 4 else min(looks.shape[1], MAX_FRAMES)
    height, width = looks.shape[-3:-1]
    share = math.sqrt(MAX_PIXELS / (frames * count * height * width))
    side = min(MAX_SIDE, share * max(height, width))
    for picture in looks:
        yield webp(picture if looks.ndim == 4 else some_frames(picture, MAX_FRAMES), side, THUMBNAIL_MILLISECONDS)


def playable(leaves: Media, count: int) -> Iterator[bytes]:
    """Each leaf with sound, of `count` of one tree, as WebM. The larger `count` is, the more is lost."""
    from ..proto.webm import webm  # only workers that need it pay for its libraries

    for leaf in leaves:
        yield webm(leaf, MAX_SIDE, max_bytes=MAX_PLAYABLE_BYTES / count)


def split_nodes(schedule: Schedule) -> npt.NDArray[np.int64]:
    """The nodes of a tree that are split, int64 [n]."""
    splits = [depth for depth, step in enumerate(schedule.steps) if step.children > 1]
    return np.flatnonzero(np.isin(schedule.depth, splits))
