"""The sections of a page about a run. A new one is a file beside this one, and a line here."""

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from . import evaluations, overview_page, pictures_page, recipe_page, samples, sources, time_page, trees_page
from .pages import Asked, Links, Picture, render
from .runs import Run


@dataclass(frozen=True)
class Section:
    """A part of a run's page: a tab of the server's, a chapter of a one-file export."""

    title: str
    build: Callable[[Run, Asked, Links], Markup]
    """Draws it. Raises InputError if something is asked for that isn't there."""


SECTIONS = {
    "overview": Section("Overview", overview_page.build),
    "pictures": Section("Pictures", pictures_page.build),
    "trees": Section("Trees", trees_page.build),
    "time": Section("Time", time_page.build),
    "recipe": Section("Recipe", recipe_page.build),
}
PICTURES: dict[str, Callable[[Run, list[str]], Picture]] = {
    "evaluation": evaluations.evaluation_picture,
    "samples": samples.sample_picture,
    "source": sources.source_picture,
    "tree": trees_page.picture,
}
"""First part of a picture's name -> what makes it of the run and of the other parts."""


def picture(run: Run, name: str) -> Picture:
    """A picture of a run by its name, such as `evaluation/20/3`. Raises LookupError if there is none."""
    kind, *names = name.split("/")
    try:
        return PICTURES[kind](run, names)
    except (ValueError, TypeError, OSError) as error:  # no number, or half a file
        raise LookupError(name) from error


def section(run: Run, name: str, asked: Asked, links: Links) -> Markup:
    """A section of a run, with what is wrong in the files that it read. Raises InputError as `Section.build`."""
    content = SECTIONS[name].build(run, asked, links)
    return render("section.html", content=content, problems=run.problems)
