"""The pages' style and scripts: ours, and Plotly's, which comes with its package."""

from functools import cache
from hashlib import sha256

from plotly.offline import get_plotlyjs

from .pages import HERE, STATIC

SCRIPTS = {
    "view.css": "text/css",
    "trees.css": "text/css",
    "plotly.js": "text/javascript",
    "view.js": "text/javascript",
    "trees.js": "text/javascript",
}
"""File -> its media type, in the order in which pages load them."""


@cache
def static_file(name: str) -> bytes:
    """The content of one of `SCRIPTS`."""
    return get_plotlyjs().encode() if name == "plotly.js" else (STATIC / name).read_bytes()


@cache
def version() -> str:
    """A text that changes with the pages themselves: browsers keep no page of an earlier version."""
    own = (file.read_bytes() for file in sorted(HERE.rglob("*")) if file.suffix in (".py", ".html", ".svg"))
    return sha256(repr([*map(address, SCRIPTS), *own]).encode()).hexdigest()


@cache
def address(name: str) -> str:
    """Address of a file on the server; it changes with the file's content."""
    return f"/static/{name}?{sha256(static_file(name)).hexdigest()[:8]}"
