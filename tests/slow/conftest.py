"""What the tests of learner ranks share."""

from pathlib import Path
from typing import Any

import pytest
from ranks import learn_on_two
from support import Settings


@pytest.fixture(scope="module")
def two_ranks(
    settings_in: Settings, variants: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder in which two ranks have learned each of a file's `variants`."""
    return learn_on_two(settings_in, variants, tmp_path_factory.mktemp("ranks"))
