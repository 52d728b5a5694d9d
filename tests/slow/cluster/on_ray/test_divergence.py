"""A run on Ray that diverges."""

from diverging import assert_its_last_whole_checkpoint_is_kept
from support import LITTLE, Settings


def test_a_run_that_diverges_keeps_its_last_whole_checkpoint(run_settings: Settings, head: str) -> None:
    pools = {"learner": LITTLE, "rollout_workers": LITTLE, "rewards": {"ocr": LITTLE}}
    assert_its_last_whole_checkpoint_is_kept(run_settings, {"execution": "ray", "pools": pools}, head)
