"""The section of a run's settings, versions, and changes at each resume; and the differences between recipes."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from ..run.status import describe
from .pages import Asked, Links, render
from .runs import Run


def build(run: Run, asked: Asked, links: Links) -> Markup:
    """Everything that the run was made with."""
    versions = run.json("versions.json")
    changes = [(line["iteration"], line.get("time", ""), describe(line)) for line in run.iterations("changes")]
    return render("recipe.html", settings=flat(run.recipe), versions=versions, changes=changes)


def flat(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings by their dotted names, as texts."""
    return dict(_flat(settings, ""))


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            # Whole numbers of a setting may stand as 60 and as 60.0.
            whole = int(value) if isinstance(value, float) and value.is_integer() else value
            yield f"{prefix}{key}", whole if isinstance(whole, str) else json.dumps(whole, ensure_ascii=False)
