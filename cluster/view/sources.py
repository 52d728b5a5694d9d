"""The pictures that a policy started from, beside what it made of them."""

import numpy as np

from ...proto import pictures
from ...proto.errors import InputError
from ...proto.prompt import pictures_of
from ...proto.webp import webp
from .evaluations import MAX_SIDE
from .pages import Links, Picture
from .runs import Run


def sources(prompt: str, links: Links) -> list[str]:
    """The addresses of a prompt's pictures."""
    return [links.picture(f"source/{picture.name}") for picture in pictures_of(prompt)]


def source_picture(run: Run, names: list[str]) -> Picture:
    """The picture of this name among those that the run keeps with its prompts. Raises LookupError if there is none."""
    (name,) = names
    path = run.file(f"prompts/{pictures.FOLDER}/{name}")
    if path is None:
        raise LookupError(name)
    try:
        return Picture(webp(np.asarray(pictures.Picture(name, path).image()), MAX_SIDE), "image/webp")
    except InputError as error:
        raise LookupError(name) from error
