"""A run that diverges."""

from diverging import assert_its_last_whole_checkpoint_is_kept
from support import Settings


def test_a_run_that_diverges_keeps_its_last_whole_checkpoint(run_settings: Settings) -> None:
    assert_its_last_whole_checkpoint_is_kept(run_settings, {})
