"""YAML 1.2, strictly: what is written is what is read."""

import math
from typing import Any

import pytest
from branchgrpo.proto.yaml12 import read_yaml, write_yaml
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = st.text(st.characters(exclude_categories=[]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
DATA = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS | st.integers(), inner))


@given(DATA)
@settings(max_examples=100)
def test_what_is_written_is_read_as_it_was(content: Any) -> None:
    assert read_yaml(write_yaml(content)) == content


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, text) for text in ("yes", "on", "No", "y", "1:30", "190:20:30", "???", "${x}", "1_000", "0b11", "=")),
        *((text, text) for text in ("2026-01-02", "1990-13-45", "0o9", "1e", "é", "a=b", ".", "_1", "1_", "tRue")),
        *((text, None) for text in ("", "null", "~", "---", "# nothing")),
        *((text, True) for text in ("true", "True", "TRUE")),
        *((text, 10) for text in ("10", "010", "+10", "0o12", "0xA", "10 # ten", "!!int 10")),
        *((text, 1e-5) for text in ("1e-5", "1E-5", "1.e-05", "0.00001", ".1e-4", "+1e-5")),
        ("3E4", 30000.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("'10'", "10"),
        ("!!str 10", "10"),
        ("%YAML 1.2\n---\non", "on"),
        ("\ufeffa: 1", {"a": 1}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: object) -> None:
    found = read_yaml(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", 'line 3: found duplicate key "a"'),
        ("{0: 2, 0: 3}", 'duplicate key "0"'),
        ("a: 1\n---\nb: 2", "line 2: but found another document"),
        ("%YAML 1.1\n---\na: on", "only 1.2 is read"),
        ("%YAML 1.3\n---\na: on", "can only be 2 or 1"),
        ("a: 1\n\tb: 2", "line 2: found character '\\\\t'"),
        ("a: *b", "undefined alias"),
        ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("!!timestamp 2026-01-02", "could not determine a constructor"),
        ("!!int x", "invalid literal"),
        ("a: \x07", "special characters are not allowed"),
        ("[" * 1000, "nested too deeply"),
        ("1" * 5000, "4300 digits"),
    ],
)
def test_all_else_is_one_line_of_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(text)
    assert "\n" not in str(error.value)
