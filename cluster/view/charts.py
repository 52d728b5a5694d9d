"""Charts, described as Plotly's figures: the page's script draws them, in the colours of light or dark."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = Sequence[float | None]
COLOURS = ("#3b82c4", "#d9822b", "#3a9d6e", "#b05fb8", "#c94f4f", "#8a7a52", "#4aa3a8", "#7a82c9")
"""Colours of the first, second, ... curve. Each differs from the others, and can be read on white and on black."""
DASHES, SYMBOLS = ("solid", "dash", "dashdot", "longdash"), ("circle", "square", "diamond", "x")
"""What tells curves of the same colour apart: lines, and dots."""


@dataclass
class Chart:
    """A chart with its title, and what to see in it."""

    title: str
    about: str
    x: Values
    traces: list[dict[str, Any]] = field(default_factory=list)
    x_title: str = "iteration"
    marks: Mapping[int, str] = field(default_factory=dict)
    """Iteration -> what happened there, shown as an upright line."""
    name: str = ""
    """What names it in its page, if not its title: in small letters, titles of rewards may be alike."""
    below: float | None = None
    """The lowest value that the axis begins with; None for what the curves need."""

    @property
    def id(self) -> str:
        """Names the chart in its page."""
        return self.name or "chart-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    def line(self, name: str, y: Values, colour: int, *, x: Values | None = None, dots: bool = False) -> None:
        """Add a curve, over `x` of its own if it has one; with dots for values that are far apart."""
        again = colour // len(COLOURS) % len(DASHES)
        dash = "dot" if dots else DASHES[again]
        self.traces.append(
            {
                "name": name,
                "y": _short(y),
                "mode": "lines+markers" if dots else _mode(y),
                "line": {"color": COLOURS[colour % len(COLOURS)], "width": 1.6, "dash": dash},
                "marker": {"size": 6, "symbol": SYMBOLS[again]},
                **({} if x is None else {"x": _short(x)}),
            }
        )

    def band(self, name: str, low: Values, high: Values, colour: int) -> None:
        """Add the area between two curves."""
        shade = COLOURS[colour % len(COLOURS)]
        edge = {"mode": "lines", "line": {"width": 0, "color": shade}, "legendgroup": name}
        self.traces.append({**edge, "name": f"{name}: minimum", "y": _short(low), "showlegend": False})
        self.traces.append(
            {**edge, "name": f"{name}: maximum", "y": _short(high), "fill": "tonexty", "fillcolor": shade + "2e"}
        )
        self.traces[-1]["showlegend"] = False

    def layer(self, name: str, y: Values, colour: int) -> None:
        """Add a layer of a stack."""
        shade = COLOURS[colour % len(COLOURS)]
        self.traces.append(
            {
                "name": name,
                "y": _short(y),
                "mode": _mode(y),
                "stackgroup": "all",
                "line": {"width": 0.8, "color": shade},
                "fillcolor": shade + "99",
            }
        )

    @property
    def figure(self) -> dict[str, Any]:
        """What the script draws: all but the theme."""
        return {
            "x": _short(self.x),
            "traces": self.traces,
            "x_title": self.x_title,
            "marks": [[x, text] for x, text in self.marks.items()],
            "below": self.below,
        }


def _short(values: Values) -> list[float | None]:
    """Values in six digits: more can't be seen, and would double the page."""
    return [None if value is None else float(f"{value:.6g}") for value in values]


def _mode(y: Values) -> str:
    """How a curve is drawn: a single value, which makes no line, as a dot."""
    return "lines+markers" if sum(value is not None for value in y) == 1 else "lines"
