"""Numbers for sizes that are `auto`: what fits a device, what is fast on it, and what a run that continues has."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from branchgrpo.cluster.plan.calibration import Calibration, Pace
from branchgrpo.cluster.plan.device import core_here, host_share, known_device
from branchgrpo.cluster.plan.fit import UNUSABLE_BYTES
from branchgrpo.cluster.plan.forecast import forecast
from branchgrpo.cluster.plan.gpus import GPUS
from branchgrpo.cluster.plan.memory import count_memory
from branchgrpo.cluster.plan.prices import Prices
from branchgrpo.cluster.plan.sizes import choose_sizes, same_sizes
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import dump_recipe, load_recipe, save_recipe
from branchgrpo.proto.settings_errors import changed_settings, named_settings
from support import Settings

ROLLOUT, MICRO = "rollout.max_batch_rows", "learner.rows_per_micro_batch"
TASK, WINDOW = "rollout.trees_per_task", "learner.window_trees"
ON_GPUS = {"execution": "ray", "pools.learner.gpus": 1, "pools.rollout_workers.gpus": 1}
SMALL = replace(GPUS["h100"], bfloat16=1e9, float32=1e9)
"""A GPU on which a tiny network takes its time."""


def test_auto_stays_auto_until_it_is_chosen(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({ROLLOUT: "auto", WINDOW: "auto"})
    assert settings.automatic == [ROLLOUT, WINDOW]
    (tmp_path / "own.yaml").write_text(dump_recipe(settings))
    again = load_recipe(tmp_path / "own.yaml", [f"{WINDOW}=3", f"{TASK}=auto"])
    assert again.automatic == [TASK, ROLLOUT]
    assert again.learner.window_trees == 3
    with pytest.raises(InputError, match=rf"{ROLLOUT}: it is 'most'; give a number, or auto"):
        run_settings({ROLLOUT: "most"})


@pytest.mark.parametrize("fits", [1, 7])
def test_the_largest_number_of_rows_that_fits_is_chosen(fits: int, run_settings: Settings) -> None:
    settings = run_settings({**ON_GPUS, MICRO: "auto"})
    memory = count_memory(settings)["1 x learner rank"]
    room = memory.held + memory.phases[MICRO].taken.bytes(fits)
    gpu = replace(SMALL, memory=UNUSABLE_BYTES + room)
    assert choose_sizes(settings, (gpu, Calibration())).learner.rows_per_micro_batch == fits
    with pytest.raises(InputError, match=f"{MICRO} can't be chosen: not a single row fits"):
        choose_sizes(settings, (replace(gpu, memory=UNUSABLE_BYTES + memory.held), Calibration()))


def test_no_more_rows_are_chosen_than_there_can_be(run_settings: Settings) -> None:
    settings = run_settings({**ON_GPUS, MICRO: "auto", ROLLOUT: "auto"})
    chosen, schedule = choose_sizes(settings, (SMALL, Calibration())), settings.schedule.build()
    assert chosen.rollout.max_batch_rows == 2 * schedule.leaves
    assert chosen.learner.rows_per_micro_batch == 2 * schedule.rows


@pytest.mark.parametrize(("seconds", "fastest"), [({1: 1.0, 4: 2.0, 8: 8.0}, 4), ({1: 1.0, 4: 3.0, 8: 5.0}, 18)])
def test_the_fastest_measured_rows_are_chosen(seconds: dict[int, float], fastest: int, run_settings: Settings) -> None:
    """Per row, or all that fit, as long as more rows took less time for each: a window has 18."""
    settings = run_settings({MICRO: "auto"})
    assert 2 * settings.schedule.build().rows == 18
    calibration = Calibration(paces={"trained": Pace(0.1, item=1.0, calls=seconds)})
    device = (replace(SMALL, name="cpu"), calibration)
    assert choose_sizes(settings, device).learner.rows_per_micro_batch == fastest


@pytest.mark.parametrize("placement", ["separate", "colocated", None])
def test_no_other_trees_have_a_shorter_iteration(placement: str | None, run_settings: Settings) -> None:
    layout = {"execution": "ray", "placement": placement} if placement else {}
    settings = run_settings({**layout, "pools.learner.count": 2, TASK: "auto", WINDOW: "auto"})
    paces = {"forward": Pace(0.3, item=0.01, call=0.05), "trained": Pace(0.3, item=0.02, call=0.1)}
    device = (replace(SMALL, name="cpu"), Calibration(paces=paces))
    prices = Prices.of(settings, device)
    chosen = forecast(choose_sizes(settings, device), prices).seconds
    others = [changed_settings(settings, {TASK: task, WINDOW: window}) for task, window in product((1, 2, 4), (1, 2))]
    assert chosen <= 1.01 * min(forecast(other, prices).seconds for other in others)


def test_a_run_that_continues_keeps_its_numbers(run_settings: Settings) -> None:
    run = run_settings({MICRO: 3}).runs / "run"
    run.mkdir(parents=True)
    save_recipe(run_settings({MICRO: 3}), run)
    settings = run_settings({MICRO: "auto", TASK: "auto"})
    assert named_settings(same_sizes(settings, run), settings.automatic) == {MICRO: 3, TASK: 2}
    assert same_sizes(settings, run.parent).automatic == settings.automatic, "no run to continue"


def test_a_gpu_of_which_nothing_is_known_is_named() -> None:
    assert known_device("NVIDIA H100 80GB HBM3")[0] == GPUS["h100"]
    with pytest.raises(InputError, match="sizes are auto, and nothing is known of the GPU Voodoo2: give numbers"):
        known_device("Voodoo2")
    assert core_here()[0].name == "cpu"
    assert host_share(1) == 2 * host_share(2) > 0
