"""Rewards of latents on Ray, against a run in one process."""

import numpy as np
from branchgrpo.cluster.run import samples
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.train import train
from rich.console import Console
from support import SMALL, Settings, assert_bit_equal, weights

WARMTH = {"function": "support:warmth", "reads": "latents"}


def test_latents_travel_between_processes(run_settings: Settings, head: str) -> None:
    """Weights, scores, evaluations and samples are those of a run in one process, and the reward rises."""
    changes = {
        "iterations": 6,
        "rewards": {"warmth": WARMTH},
        "logging.samples_every": 3,
        "logging.trees_every": 0,
        "learner.optimizer.learning_rate": 5e-3,
        "threads": 1,
    }
    alone = train(run_settings({**changes, "name": "alone"}), RunDisplay(Console(quiet=True)))
    pools = {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"warmth": SMALL}}
    settings = run_settings({**changes, "execution": "ray", "pools": pools})
    run = train(settings, RunDisplay(Console(quiet=True)), address=head)
    assert_bit_equal(weights(run), weights(alone))
    one, other = map(RunFolder, (alone, run))
    means = [[line["warmth"] for line in own.lines("evaluations")] for own in (one, other)]
    assert means[0] == means[1]
    assert means[0][-1] > means[0][0]
    seen = [own.evaluation(own.lines("evaluations")[-1]).media for own in (one, other)]
    np.testing.assert_array_equal(seen[0].pictures, seen[1].pictures)
    assert seen[0].arrays().keys() == {"media"}
    drawn = [samples.parse((own / samples.samples_file(3)).read_bytes()) for own in (alone, run)]
    assert drawn[0].pictures == drawn[1].pictures
    assert [samples.sampled_iterations(own) for own in (alone, run)] == [[3, 6]] * 2
