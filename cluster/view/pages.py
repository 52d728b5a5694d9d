"""What all pages share: how they are drawn, how numbers are written, and what their parts are given."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ...proto.errors import InputError

HERE = Path(__file__).parent
STATIC = HERE / "static"
WEBM = "webm"
"""The last part of the name of what plays a leaf with sound; without it, the name is that of what is seen of it."""
Asked = Mapping[str, str]
"""What the address of a page asks for, such as iteration -> 12. In a one-file export, nothing."""


class Links(Protocol):
    """Addresses within a page about one run: of a server, or within a file that holds everything."""

    def picture(self, name: str) -> str:
        """The address of a picture, by a name that `sections.picture` understands, such as `evaluation/20/3`."""

    def section(self, name: str, **asked: object) -> str | None:
        """The address of another section, or of this one for something else; None where there is no other."""


@dataclass(frozen=True)
class Picture:
    """An encoded picture, clip or sound."""

    data: bytes
    media_type: str


def shown(links: Links, name: str, has_sound: bool) -> dict[str, str]:
    """The attributes of an element that shows a leaf: the `src` of a picture; of what plays, `src` and a `poster`."""
    seen = links.picture(name)
    return {"poster": seen, "src": links.picture(f"{name}/{WEBM}")} if has_sound else {"src": seen}


def render(template: str, **values: Any) -> Markup:
    """A template of this folder with values, all of which are text unless they are `Markup`; with a question mark for
    what UTF-8 hasn't, as in the path of a folder."""
    return Markup(_pages.get_template(template).render(values).encode(errors="replace").decode())


def asked_number(asked: Asked, name: str, known: list[int]) -> int | None:
    """The number that is asked for, or the last one known. Raises InputError if it isn't known."""
    if name not in asked:
        return known[-1] if known else None
    given, numbers = asked[name], {str(number): number for number in known}
    if given not in numbers:
        raise InputError(f"{name} is '{given[:20]}'; there is {', '.join(numbers) or 'none'}")
    return numbers[given]


def asked_count(asked: Asked, name: str, default: str = "") -> int | None:
    """How many are asked for; None, which stands for all, if that is no number, or one of ten digits."""
    given = asked.get(name, default)
    return int(given) if given.isdecimal() and len(given) < 10 else None


def figure(value: float | None) -> str:
    """A number in few digits."""
    if value is None:
        return "–"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """Seconds in the unit that one thinks in."""
    if value is None:
        return "–"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.1f} s" if value >= 0.1 or value == 0 else f"{1000 * value:.1f} ms"


def clock(moment: float | None) -> str:
    """Unix seconds as date and time of this machine."""
    return "–" if moment is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


_pages = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_pages.filters.update(figure=figure, seconds=seconds, clock=clock)
