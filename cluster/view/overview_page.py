"""The section of a run's curves, and of what is wrong with them."""

from markupsafe import Markup

from .pages import Asked, Links, render
from .runs import Run


def build(run: Run, asked: Asked, links: Links) -> Markup:
    """Rewards, diversity, seconds and the learner's figures over the iterations."""
    return render("overview.html")
