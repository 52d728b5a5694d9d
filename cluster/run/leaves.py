"""A leaf as one still picture, for grids, and as a file of its own."""

import math
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ...proto.media import Media, some_frames
from ...proto.wav import wav
from ...proto.webm import webm

FRAMES = 3
"""Frames of a clip that stand in a row."""
SPECTROGRAM = 48
"""Height of the spectrogram below the frames of a clip with sound, pixels."""
LOGGED_SIDE = 256
"""Maximum side of a clip for TensorBoard and W&B, which keep many."""
QUALITY = 15
"""Quality of the files of clips with sound."""


def drawn(leaf: Media, maximum: float = math.inf) -> Image.Image:
    """A leaf, media of one, as a still picture: of a clip the first, the middle and the last frame in a row, of a sound
    its spectrogram, which stands below the frames of a clip with sound. No side of a frame is longer than `maximum`.
    """
    frames = [Image.fromarray(frame) for frame in some_frames(leaf.looks()[0], FRAMES)]
    for frame in frames:
        if max(frame.size) > maximum:
            frame.thumbnail((maximum, maximum))
    width, height = frames[0].size
    heard = Image.fromarray(Media(sound=leaf.sound).looks()[0]) if leaf.kind == "clip with sound" else None
    sheet = Image.new("RGB", (width * len(frames), height + (SPECTROGRAM if heard else 0)))
    for number, frame in enumerate(frames):
        sheet.paste(frame, (number * width, 0))
    if heard:
        sheet.paste(heard.resize((sheet.width, SPECTROGRAM)), (0, height))
    return sheet


def played(leaf: Media) -> dict[str, bytes]:
    """What plays of a leaf, media of one, in TensorBoard and W&B: `clip`, its frames as a small GIF, and `sound`, a
    WAV. Nothing of a picture."""
    found = {}
    if leaf.kind.startswith("clip"):
        frames = [Image.fromarray(frame) for frame in leaf.looks()[0]]
        for frame in frames:
            frame.thumbnail((LOGGED_SIDE, LOGGED_SIDE))
        with BytesIO() as file:
            duration = int(1000 / leaf.frame_rate)
            frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)
            found["clip"] = file.getvalue()
    if leaf.sound is not None:
        found["sound"] = wav(leaf.sound[0], leaf.sample_rate)
    return found


def save_leaf(path: Path, leaf: Media) -> Path:
    """Write a leaf, media of one, under a path without ending, and return the file: a picture as PNG, a clip as an
    animated one, a sound as WAV, none of which loses anything; a clip with sound as WebM."""
    if leaf.sound is not None and leaf.pictures is None:
        file = path.with_suffix(".wav")
        file.write_bytes(wav(leaf.sound[0], leaf.sample_rate))
    elif leaf.sound is not None:
        file = path.with_suffix(".webm")
        file.write_bytes(webm(leaf, quality=QUALITY))
    else:
        file = path.with_suffix(".png")
        look = leaf.looks()[0]
        frames = [Image.fromarray(frame) for frame in some_frames(look, len(look))]
        more: dict[str, Any] = {
            "save_all": True,
            "append_images": frames[1:],
            "duration": int(1000 / leaf.frame_rate),
            "loop": 0,
        }
        frames[0].save(file, **(more if len(frames) > 1 else {}))
    return file
