"""What a run logs, and what of it a resumed run replaces."""

from collections.abc import Callable

from branchgrpo.cluster.run_folder import RunFolder
from branchgrpo.cluster.run_log import RunLog
from branchgrpo.proto.settings import RunSettings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_tensorboard_shows_a_repeated_iteration_once(run_settings: Callable[..., RunSettings]) -> None:
    settings = run_settings({"logging.tensorboard": True})
    with RunFolder.create(settings) as folder:
        for steps, value in (((1, 2, 3), 0.25), ((3, 4), 0.5)):
            log = RunLog(folder, settings, steps[0])
            for step in steps:
                log.evaluation(step, {"ocr": value})
            log.close()
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload().Scalars("evaluation/ocr")
    assert [(event.step, event.value) for event in events] == [(1, 0.25), (2, 0.25), (3, 0.5), (4, 0.5)]
