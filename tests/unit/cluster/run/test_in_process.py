"""The four calls in one process, where worker and learner share a policy, at every ZeRO stage."""

from typing import Any

import pytest
import support
from branchgrpo.cluster.run.in_process import InProcessLoop
from support import COUNTING, Settings


@pytest.mark.parametrize(
    ("stage", "precision", "lora"),
    [(0, "float32", True), (1, "bfloat16", False), (2, "float32", False), (3, "float32", False), (3, "bfloat16", True)],
)
def test_the_worker_samples_with_the_weights_just_learned(
    run_settings: Settings, stage: int, precision: str, lora: bool
) -> None:
    settings = run_settings(
        {
            "learner.zero_stage": stage,
            "policy.precision": precision,
            "learner.lora": {"rank": 2} if lora else None,
            "learner.optimizer.learning_rate": 1e-2,
            "rewards": COUNTING,
        }
    )
    loop = InProcessLoop(settings, ["1", "2", "3", "4"])
    told: list[tuple[str, float]] = []
    before = {name: value.clone() for name, value in loop.learner.engine.weights().items()}
    bound = 1e-5 if precision == "float32" else 1e-3
    for iteration in (1, 2, 3):
        report = loop.iterate(iteration, lambda phase, share: told.append((phase, share)))
        first, second = report.updates
        assert first.edges == 2 * settings.schedule.build().trained_edges
        assert first.logprob_abs_diff < bound
        assert second.logprob_abs_diff > 0
        assert report.rewards["counting"].shape == (4 * settings.schedule.build().leaves,)
    assert loop.worker.version == loop.learner.version == 3
    assert any((value != before[name]).any() for name, value in loop.learner.engine.weights().items())
    assert ("rollout", 1.0) in told
    assert ("learning", 1.0) in told


def test_models_are_called_with_what_their_pools_say(run_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    shade = support.shade

    def noting(media: Any, prompts: Any) -> Any:
        asked.append(len(prompts))
        return shade(media, prompts)

    monkeypatch.setattr(support, "shade", noting)
    pools = {"pools.rewards": {"shade": {"batch_pictures": 3}}}
    settings = run_settings({"rewards": {"shade": {"function": "support:shade"}}, **pools})
    loop = InProcessLoop(settings, ["1", "2", "3", "4"])
    loop.iterate(1)
    assert max(asked) == 3
    asked.clear()
    loop.evaluate(["1", "2", "3", "4", "5"])
    assert (max(asked), sum(asked)) == (3, 5)
