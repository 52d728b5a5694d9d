"""Strict YAML 1.2: scalars follow the core schema, and written values are read back unchanged."""

import io
import re
from pathlib import PurePath
from typing import Any, ClassVar

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

TAG = "tag:yaml.org,2002:"
SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}
"""Core schema (YAML 1.2.2, 10.3.2) and the merge key: how each is written. All else is text."""
PATTERNS = [(TAG + kind, re.compile(rf"(?:{pattern})\Z")) for kind, pattern in SCALARS.items()]
PLAIN = re.compile(r"(?!(y|n|yes|no|on|off|true|false|null)$)[a-z/][a-z0-9_./-]*", re.IGNORECASE)
"""Texts that every version of YAML reads as texts without quotes."""


class _CoreSchema(VersionedResolver):
    """Which scalars are more than text."""

    @property
    def versioned_resolver(self) -> Any:
        return {None: PATTERNS}  # whatever a text begins with

    @property
    def processing_version(self) -> Any:
        return (1, 2)


class _Constructor(SafeConstructor):
    """Makes plain data; any other tag is an error."""

    yaml_constructors: ClassVar[dict[str | None, Any]] = {}  # type: ignore[misc]

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if node in self.recursive_objects:
            raise ConstructorError(None, None, "found a list or mapping that contains itself", node.start_mark)
        return super().construct_object(node, deep)


for kind in ("null", "bool", "int", "float", "str"):
    _Constructor.add_constructor(TAG + kind, getattr(SafeConstructor, f"construct_yaml_{kind}"))
# At once, not step by step as would do for what contains itself.
_Constructor.add_constructor(TAG + "seq", lambda self, node: self.construct_sequence(node, deep=True))
_Constructor.add_constructor(TAG + "map", lambda self, node: self.construct_mapping(node, deep=True))
_Constructor.add_constructor(None, SafeConstructor.construct_undefined)


class _Representer(SafeRepresenter):
    """Quotes what any reader might take for something else than text, and writes every value out."""

    def represent_str(self, data: str) -> ScalarNode:
        return self.represent_scalar(TAG + "str", data, style=None if PLAIN.fullmatch(data) else '"')

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_multi_representer(PurePath, lambda self, path: self.represent_str(str(path)))


def read_yaml(text: str) -> Any:
    """The one document of a text, as plain data; None if there is none.

    Raises ValueError for anything else: several documents, a key that stands twice, other tags than the core schema's.
    """
    reader = _yaml()
    try:
        content = reader.load(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except MarkedYAMLError as error:
        raise ValueError(f"line {error.problem_mark.line + 1}: {error.problem}") from error
    except (YAMLError, ValueError, AssertionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    if reader.version not in (None, (1, 2)):
        raise ValueError("it says %YAML 1.1, which reads some texts and numbers otherwise; only 1.2 is read")
    return content


def write_yaml(content: Any) -> str:
    """Plain data as YAML, of which `read_yaml` makes the same again; a path is a text, a tuple a list."""
    written = io.StringIO()
    _yaml().dump(content, written)
    return written.getvalue()


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Constructor, yaml.Representer = _CoreSchema, _Constructor, _Representer
    yaml.default_flow_style, yaml.width = False, 120
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    return yaml
