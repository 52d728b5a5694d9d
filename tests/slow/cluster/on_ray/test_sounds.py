"""Sounds, and clips with sound, on Ray: from the workers through the object store to the rewards and what is kept."""

from pathlib import Path

import numpy as np
import pytest
from branchgrpo.cluster.run import samples, tree_record
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.train import train
from played_sounds import SOUNDING, sounding
from rich.console import Console
from support import SMALL, Settings, assert_bit_equal, weights


@pytest.mark.parametrize("family", SOUNDING)
def test_sounds_travel_between_processes(family: str, run_settings: Settings, tmp_path: Path, head: str) -> None:
    """Weights, evaluations and samples are those of a run in one process."""
    changes = {
        **sounding(family, tmp_path / "pipeline"),
        "prompts.per_iteration": 2,
        "learner.updates_per_iteration": 1,
        "evaluation.prompts": 2,
        "logging.samples_every": 2,
        "threads": 1,
    }
    alone = train(run_settings({**changes, "name": "alone"}), RunDisplay(Console(quiet=True)))
    pools = {"rollout_workers": SMALL, "learner": SMALL, "rewards": dict.fromkeys(changes["rewards"], SMALL)}
    settings = run_settings({**changes, "execution": "ray", "pools": pools})
    run = train(settings, RunDisplay(Console(quiet=True)), address=head)
    assert_bit_equal(weights(run), weights(alone))
    heard = [folder.evaluation(folder.lines("evaluations")[-1]).media for folder in map(RunFolder, (alone, run))]
    assert heard[0].kind == heard[1].kind == SOUNDING[family]
    for one, other in zip(*(media.arrays().values() for media in heard), strict=True):
        np.testing.assert_array_equal(one, other)
    recorded = [
        [tree_record.read(file) for file in tree_record.recorded_trees(folder).values()] for folder in (alone, run)
    ]
    for one, other in zip(*recorded, strict=True):
        assert sorted(one.playable) == one.leaves.tolist()
        assert one.playable == other.playable
    drawn = [samples.parse((folder / samples.samples_file(2)).read_bytes()) for folder in (alone, run)]
    assert drawn[0].pictures == drawn[1].pictures
    assert drawn[0].playable == drawn[1].playable
    assert len(drawn[0].playable) == len(drawn[0].prompts) == len(drawn[0].trees)
    assert drawn[0].trees == drawn[1].trees
