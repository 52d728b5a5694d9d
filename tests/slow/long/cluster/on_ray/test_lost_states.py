"""States that are lost on their way to the learner change no weight."""

from pathlib import Path

import pytest
from branchgrpo.benchmarks.support.local_cluster import several_nodes
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.status import status_of
from branchgrpo.cluster.train import train
from faulty_scorers import FOLDER
from rich.console import Console
from support import LITTLE, Settings, assert_bit_equal, weights


@pytest.mark.timeout(900)
def test_states_lost_while_fetched_ahead_change_no_weight(
    run_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node dies that holds them, and the run starts again; then the worker dies, which leaves them on its node."""
    changes = {
        "iterations": 2,
        "threads": 1,
        "policy.adapter": "faulty_nodes:Lost",
        "policy.height": 128,  # the states of a tree are too many to travel within a message
        "policy.width": 128,
        "schedule": {"steps": 12, "splits": {0: 2}, "eta": 0.7},
        "prompts.held_out": None,  # an evaluation would wait for another worker
        "rewards": {"shade": {"function": "support:shade"}},
        "learner.updates_per_iteration": 1,
    }
    pools = {
        "placement_timeout_seconds": 60.0,  # a node may be known before what it has
        "rollout_workers": {**LITTLE, "resources": {"work": 1}},
        "learner": {**LITTLE, "resources": {"learn": 1}},
        "rewards": {"shade": {**LITTLE, "resources": {"learn": 1}}},
    }
    monkeypatch.setenv(FOLDER, str(tmp_path))
    alone = train(run_settings({**changes, "name": "alone"}), RunDisplay(Console(quiet=True)))
    settings = run_settings({**changes, "name": "lost", "execution": "ray", "pools": pools})
    with several_nodes(2, store=200_000_000) as (address, _):
        run = train(settings, RunDisplay(Console(quiet=True)), address=address)
    assert [(tmp_path / fault).read_text() for fault in ("node", "worker")] == ["2", "2"]
    assert status_of(run).recoveries == 1
    assert_bit_equal(weights(run), weights(alone))
