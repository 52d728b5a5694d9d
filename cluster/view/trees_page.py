"""The section of a run's trees."""

from markupsafe import Markup

from .pages import Asked, Links, Picture, render
from .runs import Run


def build(run: Run, asked: Asked, links: Links) -> Markup:
    """The trees that the run has recorded."""
    return render("trees.html")


def picture(run: Run, names: list[str]) -> Picture:
    """A picture within a tree. Raises LookupError if there is none of these names."""
    raise LookupError("/".join(names))
