"""Names of rewards stand in files, labels, addresses and dotted settings: what would break one of them is refused."""

import pytest
from branchgrpo.proto.errors import InputError
from support import Settings


@pytest.mark.parametrize("name", ["ocr", "HPS_v2-1", "r2d2", "x" * 64])
def test_plain_names_are_taken(name: str, run_settings: Settings) -> None:
    assert list(run_settings({"rewards": {name: {"function": "m:f"}}}).rewards) == [name]


@pytest.mark.parametrize(
    "name",
    [
        *("prompt", "picture", "iteration", "diversity", "Models", "a/b", "my.reward", "a#b", "[red]x", "qualité"),
        *("", " ", "a b", "a\nb", "2x", "-x", "_x", "__metadata__", "x" * 65, "a=b", "a:b", "ｏｃｒ"),
    ],
)
def test_names_that_would_break_something_are_refused(name: str, run_settings: Settings) -> None:
    with pytest.raises(InputError) as told:
        run_settings({"rewards": {name: {"function": "m:f"}}})
    assert str(told.value).startswith(f"rewards: {name!r} can't name a reward; a name has up to 64 letters of English")
    assert len(str(told.value).splitlines()) == 1
