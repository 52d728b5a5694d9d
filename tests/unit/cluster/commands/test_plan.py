"""`branchgrpo plan`, from the command line."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from branchgrpo.benchmarks.support.model_sizes import flux_dev
from branchgrpo.cluster.cli import app
from branchgrpo.cluster.commands import plan as planning
from branchgrpo.cluster.commands.check import check
from branchgrpo.cluster.plan.calibration import Calibration
from branchgrpo.cluster.plan.gpus import GPUS
from branchgrpo.cluster.plan.layouts import Layout, Planned
from branchgrpo.cluster.plan.prices import Prices
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import load_recipe
from branchgrpo.proto.settings_errors import changed_settings
from rich.console import Console
from support import Settings, recipe_in
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where calibrations are kept, meanwhile."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "cache"


def command(*arguments: object) -> str:
    """What a command prints. Raises as it does."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_flux_is_planned_from_its_configurations_and_written(tmp_path: Path) -> None:
    folder, file = flux_dev(tmp_path / "flux"), tmp_path / "written" / "mine.yaml"
    given = [
        f"policy.pretrained={folder}",
        "iterations=7",
        "prompts.column=no: that",
        "pools.learner={count: 3, cpus: 2}",
    ]
    output = command("plan", "flux_hps_branch", *given, "--gpus", "8", "--write", file, "--layout", "2")
    assert "flux_hps_branch on 8 x h100" in output
    assert "Assumed: 40% of 989 TFLOP/s" in output
    assert "hps: 50% of 67 TFLOP/s, assumed" in output
    rows = [line.split()[0] for line in output.splitlines() if " rank" in line and line.split()[0].isdigit()]
    assert rows == list("12345")
    written, plain = load_recipe(file), load_recipe(Path("flux_hps_branch"), given)
    assert (written.iterations, written.prompts.column) == (7, "no: that")
    layout = dict.fromkeys(("pools", "placement", "staleness"))
    assert written.model_copy(update=layout) == plain.model_copy(update=layout)
    assert (plain.pools.learner.count, written.pools.learner.cpus) == (3, 2)
    gpus = check(written).gpus
    assert 7 <= sum(gpus.values()) <= 8
    assert "mine.yaml" in output
    assert "peak on the device" in output


OVERRIDES = {
    "a section with a size": ["rollout={max_batch_rows: auto, decode_batch: 4}", "learner.window_trees=auto"],
    "a step's children": ["schedule.splits.0=4"],
    "other splits": ["schedule.splits={1: 3}"],
    "other rewards": ["rewards={ocr: {}}", "rewards.ocr.weight=2", "pools.rewards.ocr.replicas=2"],
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_a_written_recipe_has_what_was_overridden(case: str, run_settings: Settings, tmp_path: Path) -> None:
    base, file = recipe_in(tmp_path, run_settings({"pools.rewards.ocr_exact": {}})), tmp_path / "mine.yaml"
    plain = load_recipe(base, OVERRIDES[case])
    prices = Prices.of(plain, (GPUS["h100"], Calibration()))
    settings = changed_settings(plain, dict.fromkeys(plain.automatic, 2))
    own = Planned(Layout("colocated", 2, 2), Layout("colocated", 2, 2).apply(settings), 1.0, {}, {"object store": 1.1})
    planning.write_layout(own, prices, 2, base, OVERRIDES[case], file)
    assert load_recipe(file) == own.settings
    assert "object store limits it" in file.read_text()


def test_reasons_are_told_where_no_layout_fits() -> None:
    small = replace(GPUS["l40s"], memory=2.001e9)  # a megabyte beside what CUDA itself takes
    made, prices = planning.make_plan(load_recipe(Path("glyphs")), 2, (small, Calibration()))
    console = Console(record=True, width=200, file=StringIO())
    planning.show(made, prices, 2, console)
    output = console.export_text()
    assert made.best == []
    assert "left out: colocated, 2 ranks: 2 x samples and learns needs" in output
    assert "It doesn't fit a GPU l40s, whatever is changed" in output


def test_mistakes_are_named_before_anything_is_counted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--gpu cpu: nothing is known of CPU .* RECIPE policy\.device=cpu`"):
        command("plan", "glyphs", "--gpu", "cpu")
    with pytest.raises(InputError, match="--gpu is h101; it must be h100, .*5090, cpu"):
        command("plan", "glyphs", "--gpu", "h101")
    (tmp_path / "there.yaml").touch()
    with pytest.raises(InputError, match="there.yaml"):
        command("plan", "glyphs", "--write", tmp_path / "there.yaml")
