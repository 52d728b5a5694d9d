"""A page about a run as one file, which opens without a server and loads nothing."""

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from ...proto.atomic_files import must_be_new, write_text
from ...proto.errors import InputError
from .pages import Asked, render
from .runs import Run
from .sections import SECTIONS, picture, section
from .static_files import SCRIPTS, static_file

ASKED: dict[str, dict[str, str]] = {"pictures": {"show": "24", "evaluations": "6"}}
"""Section -> what is asked of it, so that the file stays small."""


class ExportLinks:
    """Addresses within the file: pictures are part of it, and there is no other page."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def picture(self, name: str) -> str:
        """The picture itself, as an address."""
        try:
            found = picture(self._run, name)
        except LookupError:
            return "data:,"
        return f"data:{found.media_type};base64,{b64encode(found.data).decode()}"

    def section(self, name: str, **asked: object) -> None:
        """No address: an exported page links to no sections."""


def export(run: Run, out: Path, iteration: int | None = None) -> None:
    """Write all sections about a run into the new file `out`; trees and time of an iteration, if one is given.

    Raises InputError if `out` is there already, or if the run has nothing of that iteration.
    """
    must_be_new(out)
    write_text(out, page(run, iteration))


def page(run: Run, iteration: int | None = None) -> str:
    """The content of such a file."""
    chosen: Asked = {} if iteration is None else {"iteration": str(iteration)}
    contents, refusals = {}, []
    for name in SECTIONS:
        try:
            contents[name] = section(run, name, {**ASKED.get(name, {}), **chosen}, ExportLinks(run))
        except InputError as error:
            refusals.append(error)
            contents[name] = section(run, name, ASKED.get(name, {}), ExportLinks(run))
    if len(refusals) == 2:  # of trees and of time
        raise InputError(f"--iteration: {refusals[0]}")
    return render(
        "export.html",
        run=run,
        status=run.status,
        sections=SECTIONS,
        contents=contents,
        styles=_inline("text/css"),
        scripts=_inline("text/javascript"),
    )


def _inline(kind: str) -> Mapping[str, Markup]:
    """Our files of a kind, and Plotly's, none of which ends the element that it stands in."""
    texts = {name: static_file(name).decode() for name, given in SCRIPTS.items() if given == kind}
    return {name: Markup(text.replace("</script", "<\\/script")) for name, text in texts.items()}
