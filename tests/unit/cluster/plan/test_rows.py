"""How many rows of a tree the learner trains: expected by a formula, against all orders of scores, and of a run."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from branchgrpo.cluster.plan.rows import learner_rows, rows_of, share_of
from branchgrpo.learner.pruning import kept_edges
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import save_recipe
from branchgrpo.proto.settings_errors import changed_settings
from support import Settings

TREE = {"schedule": {"steps": 4, "splits": {0: 3, 1: 2}}}
EXTREME = {"mode": "extreme", "keep": 1, "keep_last_split": False}


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("last_split", [True, False])
def test_expected_rows_are_the_mean_over_all_orders(keep: int, last_split: bool, run_settings: Settings) -> None:
    width = EXTREME | {"keep": keep, "keep_last_split": last_split}
    settings = run_settings({**TREE, "pruning.width": width})
    schedule, rows = settings.schedule.build(), []
    for order in permutations(range(schedule.leaves)):
        values = np.concatenate([np.zeros(schedule.nodes - schedule.leaves), order])
        kept = kept_edges(values, schedule, settings.pruning, 1)
        rows.append(len(np.unique(schedule.parent[kept])))
    assert rows_of(settings, 1) == pytest.approx(np.mean(rows))


def test_a_run_s_rows_are_the_mean_over_its_iterations(run_settings: Settings) -> None:
    late = {"iterations": 4, "pruning.width": EXTREME | {"first_iteration": 4}}
    settings = run_settings({**TREE, **late})
    before, pruned = rows_of(settings, 3), rows_of(settings, 4)
    assert pruned < before
    assert learner_rows(settings) == (3 * before + pruned) / 4
    assert learner_rows(changed_settings(settings, {"learner.passes": 2})) == 2 * learner_rows(settings)


def test_a_run_tells_its_share_of_rows(run_settings: Settings, tmp_path: Path) -> None:
    """Four trees of two iterations; pruning begins with the second one."""
    settings = run_settings({**TREE, "pruning.width": EXTREME | {"first_iteration": 2}})
    save_recipe(settings, tmp_path)
    with pytest.raises(InputError, match="no finished iteration yet"):
        share_of(tmp_path, settings)
    lines = [{"iteration": 1, "rows": 5}, {"iteration": 2, "rows": 3}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert share_of(tmp_path, settings) == 8 / (4 * rows_of(settings, 1) + 4 * rows_of(settings, 2))
    other = run_settings({"rewards": {"ocr_exact": {}}})
    with pytest.raises(InputError, match="its rewards are ocr, and those of the recipe ocr_exact"):
        share_of(tmp_path, other)
