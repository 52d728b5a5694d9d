"""Sounds on Ray: from the workers through the object store to the rewards, the samples and the evaluations."""

from pathlib import Path

import numpy as np
from branchgrpo.cluster.run import samples, tree_record
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.train import train
from families import saved
from rich.console import Console
from support import SMALL, Settings, assert_bit_equal, weights


def test_sounds_travel_between_processes(run_settings: Settings, tmp_path: Path, head: str) -> None:
    """Weights, evaluations and samples are those of a run in one process."""
    changes = {
        "policy.pretrained": str(saved("Stable Audio", tmp_path / "pipeline")),
        "policy.seconds": 0.4,
        "prompts.per_iteration": 2,
        "learner.updates_per_iteration": 1,
        "evaluation.prompts": 2,
        "rewards": {"loud": {"function": "support:loudness"}},
        "logging.samples_every": 2,
        "threads": 1,
    }
    alone = train(run_settings({**changes, "name": "alone"}), RunDisplay(Console(quiet=True)))
    pools = {"rollout_workers": SMALL, "learner": SMALL, "rewards": {"loud": SMALL}}
    settings = run_settings({**changes, "execution": "ray", "pools": pools})
    run = train(settings, RunDisplay(Console(quiet=True)), address=head)
    assert_bit_equal(weights(run), weights(alone))
    heard = [folder.evaluation(folder.lines("evaluations")[-1]).media for folder in map(RunFolder, (alone, run))]
    assert heard[0].kind == heard[1].kind == "sound"
    np.testing.assert_array_equal(heard[0].sound, heard[1].sound)
    recorded = [
        [tree_record.read(file) for file in tree_record.recorded_trees(folder).values()] for folder in (alone, run)
    ]
    for one, other in zip(*recorded, strict=True):
        assert sorted(one.playable) == one.leaves.tolist()
        assert one.playable == other.playable
    drawn = [samples.parse((folder / samples.samples_file(2)).read_bytes()) for folder in (alone, run)]
    assert drawn[0].pictures == drawn[1].pictures
    assert len(drawn[0].playable) == len(drawn[0].prompts) == len(drawn[0].trees)
    assert drawn[0].trees == drawn[1].trees
