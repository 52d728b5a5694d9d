"""A run on Ray whose sizes are `auto`: it writes down its numbers, and goes by them."""

from pathlib import Path

from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.train import train
from branchgrpo.proto.recipe import dump_recipe
from branchgrpo.proto.settings_errors import changed_settings
from ray_runs import BASE
from rich.console import Console
from support import Settings, assert_bit_equal, weights

AUTO = dict.fromkeys(
    (
        "rollout.trees_per_task",
        "rollout.max_batch_rows",
        "rollout.decode_batch",
        "learner.window_trees",
        "learner.rows_per_micro_batch",
    ),
    "auto",
)
FEW = {"prompts.per_iteration": 4, "iterations": 1, "evaluation.prompts": 1, "execution": "ray"}


def test_a_run_writes_down_its_numbers_and_keeps_them(run_settings: Settings, head: str, tmp_path: Path) -> None:
    """With the same numbers a run in one process learns the same weights, and a resumed run doesn't choose again."""
    settings = run_settings({**BASE, **FEW, **AUTO})
    run = train(settings, RunDisplay(Console(quiet=True)), address=head)
    chosen = RunFolder.open(run).settings
    assert not chosen.automatic
    told = next(line for line in (run / "log.txt").read_text().splitlines() if "auto: " in line)
    assert f"rollout.trees_per_task={chosen.rollout.trees_per_task} " in told
    assert len(settings.automatic) == told.count("=") == len(AUTO)

    alone = changed_settings(chosen, {"execution": "in_process", "name": "alone"})
    assert_bit_equal(weights(train(alone, RunDisplay(Console(quiet=True)))), weights(run))

    kept = {"rollout.trees_per_task": 3, "learner.rows_per_micro_batch": 2}
    (run / "recipe.yaml").write_text(_with(run, kept))
    train(changed_settings(settings, {"iterations": 2}), RunDisplay(Console(quiet=True)), resume=True, address=head)
    assert RunFolder.open(run).settings == changed_settings(chosen, {"iterations": 2, **kept})


def _with(run: Path, numbers: dict[str, int]) -> str:
    """The recipe of a run as if it had chosen other numbers."""
    return dump_recipe(changed_settings(RunFolder.open(run).settings, numbers))
