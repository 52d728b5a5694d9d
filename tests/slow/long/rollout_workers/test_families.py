"""Compiled networks."""

from pathlib import Path

import pytest
from plain_diffusers import policy_of, two_iterations
from support import Settings


@pytest.mark.parametrize(("family", "precision"), [("FLUX.1-dev", "bfloat16"), ("SD1.5", "float32")])
def test_a_compiled_network_is_the_same_policy(
    family: str, precision: str, run_settings: Settings, tmp_path: Path
) -> None:
    """Of blocks that repeat (FLUX) and as a whole (a UNet); without gradient in rollouts and with it in the learner."""
    eager = policy_of(family, tmp_path / "pipeline").model_copy(update={"precision": precision})
    compiled = eager.model_copy(update={"compile": True})
    expected, found = (two_iterations(own, {"rank": 2}, run_settings) for own in (eager, compiled))
    bound = 1e-5 if precision == "float32" else 0.0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.updates[0].logprob_abs_diff <= bound
        assert ours.updates[0].gradient_norm == pytest.approx(theirs.updates[0].gradient_norm, rel=2e-2)
