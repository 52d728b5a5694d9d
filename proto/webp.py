"""Pictures and clips as WebP, for those who look at them: in recorded trees, samples and web pages."""

import io

from PIL import Image

from .media import FRAME_RATE, Pictures

LOSSLESS_PIXELS = 2**14
"""A picture with at most so many pixels is kept as it is: WebP's blur would hide its details."""
QUALITY = 80
"""WebP's quality for pictures that are not kept as they are."""


def webp(picture: Pictures, side: float, milliseconds: float = 1000 / FRAME_RATE) -> bytes:
    """A picture, uint8 [height, width, 3], or a clip [frames, height, width, 3], as an animation without end.

    The longer side gets at most `side` pixels. A clip shows each frame for some `milliseconds`.
    """
    frames = [Image.fromarray(frame) for frame in (picture[None] if picture.ndim == 3 else picture)]
    width, height = frames[0].size
    shrunk = min(1.0, side / max(width, height))
    if shrunk < 1:
        size = max(1, round(width * shrunk)), max(1, round(height * shrunk))
        frames = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
    lossless = width * height <= LOSSLESS_PIXELS
    effort = {"lossless": True, "quality": 0, "method": 0} if lossless else {"quality": QUALITY}
    more = {"save_all": True, "append_images": frames[1:], "duration": int(milliseconds)} if len(frames) > 1 else {}
    file = io.BytesIO()
    frames[0].save(file, format="WEBP", **effort, **more)
    return file.getvalue()
