"""`branchgrpo check` takes any number."""

from collections.abc import Iterator

import pytest
from branchgrpo.cluster.commands.check import check
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import load_recipe
from branchgrpo.proto.settings_errors import setting_paths
from support import RECIPES

EXTREMES = ("0", "-1", "1", "2147483648", "9223372036854775808", "1e-300", "1e30", "1e300", ".inf", "-.inf", ".nan")


def numbers() -> Iterator[str]:
    """All settings that are numbers, as overrides of the recipe `glyphs` with any section that it hasn't."""
    sections = {
        "pruning.width": "{mode: extreme}",
        "pruning.depth": "{mode: fixed}",
        "learner.lora": "{}",
        "checkpoint.keep_best": "{}",
        "policy.start_from": "{path: /}",
    }
    for path, field in setting_paths():
        if any(kind in str(field.annotation) for kind in ("int", "float")):
            section = next((name for name in sections if path.startswith(f"{name}.")), None)
            yield path.replace("<name>", "ocr") + (f" {section}={sections[section]}" if section else "")


@pytest.mark.parametrize("number", list(numbers()))
def test_a_number_beyond_all_bounds_is_one_error_or_can_be_used(number: str) -> None:
    path, *section = number.split(" ", 1)
    for value in EXTREMES:
        try:
            check(load_recipe(RECIPES / "glyphs.yaml", [*section, f"{path}={value}"]))
        except InputError as error:
            told = str(error)
        else:
            continue
        assert any(part in told for part in path.split(".")), told
