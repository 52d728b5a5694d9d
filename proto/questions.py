"""Questions about pictures, as templates with the prompt and the fields of its row in braces."""

from collections.abc import Sequence
from itertools import product
from string import Formatter

from .errors import InputError
from .prompt import fields_of

SHOWN = 80
"""Characters of a prompt that an error message shows."""


def check_template(template: str) -> None:
    """Raises ValueError for a brace without its partner, and for more or less than a name in braces."""
    try:
        fits = all(name != "" and not (form or conversion) for _, name, form, conversion in Formatter().parse(template))
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"'{template}' can't be filled; write {{prompt}}, or {{name}} for a field of the prompts, with nothing but "
            "the name between the braces, and {{ or }} for a brace"
        )


def questions(templates: Sequence[str], prompt: str, setting: str) -> list[str]:
    """The questions about the picture of a prompt. A field that is a list gives one question for each element.

    Raises InputError, naming the `setting` with the templates, for fields that the prompt lacks, or that are neither
    texts nor numbers nor lists of them.
    """
    values = {**fields_of(prompt), "prompt": str(prompt)}
    try:
        return [question for template in templates for question in _filled(template, values)]
    except ValueError as error:
        raise InputError(f"{setting}: the prompt '{prompt[:SHOWN]}' has {error}") from error


def _filled(template: str, values: dict[str, object]) -> list[str]:
    parts = [(text, name) for text, name, _, _ in Formatter().parse(template)]
    choices = {name: _texts(name, values) for _, name in parts if name is not None}
    return [
        "".join(text + ("" if name is None else chosen[name]) for text, name in parts)
        for chosen in (dict(zip(choices, one, strict=True)) for one in product(*choices.values()))
    ]


def _texts(name: str, values: dict[str, object]) -> list[str]:
    """The texts that stand for a name, one or several."""
    if name not in values:
        raise ValueError(f"no field '{name}'; there are {', '.join(sorted(values))}")
    value = values[name]
    given = value if isinstance(value, list) else [value]
    if not given or not all(isinstance(one, (str, int, float)) for one in given):
        raise ValueError(f"neither a text nor a number, nor a list of them, in its field '{name}'")
    return [str(one) for one in given]
