"""The font of drawn pictures: DejaVu Sans, which has the letters of most alphabets, as prompts do."""

from functools import cache
from pathlib import Path

from PIL import ImageFont


@cache
def font(pixels: int) -> ImageFont.FreeTypeFont:
    """The font with letters of some height. It has none of Chinese, Japanese and Korean, for which boxes stand."""
    # Pillow's own font has hardly more letters than ASCII. Imported here, for most processes of a run draw no text.
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), pixels)
