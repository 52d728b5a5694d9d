"""What runs are called within Ray."""

import sys
from pathlib import Path

import pytest
from branchgrpo.cluster import cli
from branchgrpo.cluster.on_ray.address import sockets_must_fit
from branchgrpo.cluster.on_ray.connect import connected
from branchgrpo.cluster.on_ray.names import (
    application_name,
    controller_name,
    controller_of,
    given_name,
    run_of,
    service_name,
)
from branchgrpo.proto.errors import InputError
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=200)


@given(NAMES, NAMES)
def test_every_run_has_names_of_its_own_in_plain_signs(one: str, other: str) -> None:
    for name in (controller_name(one), application_name(one), service_name(one)):
        assert name.isascii()
        assert len(name) < 130
        assert not set(name) & set("#/:%+[]{}* ")
    assert controller_of(application_name(one)) == controller_name(one)
    assert controller_of(service_name(one)) is None
    assert run_of(application_name(one)) is None
    assert (controller_name(one) == controller_name(other)) == (one == other)


@given(NAMES.filter(lambda name: len(name.encode()) < 33))
def test_what_ray_shows_tells_the_name_that_was_given(name: str) -> None:
    assert run_of(controller_name(name)) == name
    assert given_name(application_name(name)) == given_name(service_name(name)) == name


def test_usual_names_are_as_they_are() -> None:
    assert controller_name("sd3.5-lr_1e-5~b") == "controller-sd3.5-lr_1e-5~b"


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_too_long_for_sockets_is_told(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    sockets_must_fit()
    long = tmp_path / ("x" * 60)
    monkeypatch.setenv(variable, str(long))
    with pytest.raises(InputError, match=f"{variable} is '{long}'; Ray's sockets .* the system takes 107: give Ray"):
        connected(None).__enter__()
    assert not long.exists()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    sockets_must_fit()


@pytest.mark.parametrize(("argument", "place"), [("~/runs/x", "runs/x"), ("--out=~/pictures", "pictures")])
def test_the_home_folder_is_known_where_a_shell_leaves_it(
    argument: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pictures").mkdir()
    target = [] if argument.startswith("~") else ["glyphs"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["branchgrpo", "evaluate", *target, argument])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert str(tmp_path / place) in capsys.readouterr().err
