"""The operations of an iteration, and what share of the devices' peak they are."""

from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.cluster.plan.flops import count_work
from branchgrpo.cluster.plan.utilisation import PhaseFlops, count_kinds, utilisation
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.cluster.run.loop import IterationReport
from branchgrpo.proto.update_stats import UpdateStats
from branchgrpo.proto.usage import Usage
from support import COUNTING, Settings
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def test_an_iteration_computes_what_is_told_of_it(run_settings: Settings) -> None:
    """Torch's own counter watches a real one, with attention as the matrix products that it counts."""
    settings = run_settings({"rewards": COUNTING, "logging.trees_every": 0})
    loop = InProcessLoop(settings, ["1", "2", "3", "4"])
    loop.worker.embeddings.of(["1", "2", "3", "4"])  # those aren't counted
    state = torch.get_rng_state()
    kinds = count_kinds(settings)
    assert torch.equal(torch.get_rng_state(), state)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        report = loop.iterate(1)
    told = PhaseFlops(settings, kinds).of(report)
    assert told.keys() == {"rollout", "learning"}
    decoded = report.rewards["counting"].size * kinds["decoded leaf"]  # by far the most, in so small a pipeline
    counted = counter.get_total_flops() - decoded
    assert sum(told.values()) - decoded == pytest.approx(counted, rel=0.02)  # fused attention computes its scores again


def test_scores_and_references_are_counted_where_they_are_known(run_settings: Settings) -> None:
    settings = run_settings({"rewards": {"ocr": {}, "jpeg_compressibility": {}}})
    kinds = {"forward row": 2.0, "trained row": 6.0, "decoded leaf": 5.0, "leaf scored by ocr": 100.0}
    updates = [UpdateStats(rows=3, reference_rows=3), UpdateStats(rows=4, reference_rows=4)]
    report = IterationReport(1, {"ocr": np.zeros(8)}, {}, 11, updates, 0.0)
    flops = PhaseFlops(settings, kinds).of(report)
    assert flops == {"rollout": 11 * 2 + 8 * 5, "scoring": 800, "learning": 7 * 6 + 7 * 2}
    with_kl = settings.model_copy(update={"learner": settings.learner.model_copy(update={"kl_weight": 0.1})})
    assert PhaseFlops(with_kl, kinds).of(report)["learning"] == 7 * 6
    assert PhaseFlops(settings, {}).of(report) == {}


def test_scoring_is_used_as_its_known_models_are(run_settings: Settings) -> None:
    """One model on a GPU, one that was not counted, and one on a CPU."""
    settings = run_settings({"rewards": {"ocr": {}, "jpeg_compressibility": {}, "counting": COUNTING["counting"]}})
    kinds = {"leaf scored by ocr": 100.0, "leaf scored by counting": 30.0}
    report = IterationReport(1, {"ocr": np.zeros(8)}, {}, 11, [UpdateStats(rows=3)], 0.0)
    report.reward_usage = {
        "ocr": Usage(2.0, 1.0, 1.0, 1000.0),
        "jpeg_compressibility": Usage(2.0, 1.0, 1.0, 1000.0),
        "counting": Usage(2.0, 1.0),
    }
    report.usage = {"scoring": sum(report.reward_usage.values(), Usage())}
    PhaseFlops(settings, kinds).complete(report)
    assert report.reward_flops == {"ocr": 800.0, "counting": 240.0}
    assert report.flops["scoring"] == 1040.0
    assert report.reward_utilisation == {"ocr": 0.8}
    assert report.utilisation == {"scoring": 0.8}


def test_utilisation_needs_a_peak() -> None:
    usage = {"rollout": Usage(2.0, 1.0, 1.0, 100.0) + Usage(1.0, 1.0, 1.0, 60.0), "learning": Usage(1.0, 1.0)}
    assert utilisation({"rollout": 40.0, "learning": 9.0, "scoring": 1.0}, usage) == {"rollout": 0.25}


@pytest.mark.parametrize(
    "changes", [{"policy.adapter": "branchgrpo.benchmarks.support.gaussian:GaussianPolicy"}, {"policy.precision": "x"}]
)
def test_a_policy_that_can_not_be_counted_costs_no_run(changes: dict[str, Any], run_settings: Settings) -> None:
    settings = run_settings()
    broken = {name.removeprefix("policy."): value for name, value in changes.items()}
    other = settings.model_copy(update={"policy": settings.policy.model_copy(update=broken)})
    assert count_kinds(other) == {}


def test_the_kinds_are_those_of_the_plan(run_settings: Settings) -> None:
    settings = run_settings()
    work = count_work(settings)
    assert count_kinds(settings) == {
        "forward row": work.forward_row,
        "trained row": work.trained_row,
        "decoded leaf": work.decode_leaf,
    }
