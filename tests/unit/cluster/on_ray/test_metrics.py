"""What the controller exports of an iteration."""

import numpy as np
from branchgrpo.cluster.on_ray import metrics
from branchgrpo.cluster.run.loop import IterationReport
from branchgrpo.proto.settings import RewardSettings

REWARDS = {name: RewardSettings(weight=weight) for name, weight in {"ocr": 1.0, "blur": -0.5, "clip": 0.0}.items()}


def exported(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name, labels)


def note(diversity: float | None = None) -> None:
    report = IterationReport(1, dict.fromkeys(REWARDS, np.array([0.25, 0.75])), {}, 11, [], diversity)
    metrics.note_iteration(report, REWARDS, 2.0, version=1)


def test_diversity_stays_where_nothing_is_decoded() -> None:
    """With rewards of latents most iterations decode nothing, and a mean over time of NaN is NaN."""
    shown = []
    for diversity in (0.25, None, 0.125, None):
        note(diversity)
        shown.append(exported("branchgrpo_diversity"))
    assert shown == [0.25, 0.25, 0.125, 0.125]


def test_weights_say_which_way_a_reward_should_go() -> None:
    note()
    assert {name: exported("branchgrpo_reward_weight", reward=name) for name in REWARDS} == {
        "ocr": 1.0,
        "blur": -0.5,
        "clip": 0.0,
    }
