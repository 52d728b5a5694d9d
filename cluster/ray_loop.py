"""The loop of a run on Ray, as its driver sees it: starts Ray and the controller, and passes calls on.

What must not be lost (logs, pictures, checkpoints' names) stays with the driver; what must not pass through one process
(pictures, states, weights) goes from where it is made to where it is used.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..proto.errors import InputError
from ..proto.files import whole
from ..proto.settings import RunSettings
from ..reward_service.service import QUIET
from .connect import connect
from .controller import Controller
from .evaluation import Evaluation, sampled_prompts
from .launch import application_name
from .loop import IterationReport, Progress
from .operate import NAMESPACE, controller_name, unwrapped
from .placement import check_room, demands, free_nodes
from .whereabouts import AUTH_MODE, FILE, Whereabouts

POLL_SECONDS = 0.25


class RayLoop:
    """A run on the Ray at `address` (default: RAY_ADDRESS), or on one that is started here and ended with the run.

    A Ray that this process is connected to already is used, and left as it is.
    """

    def __init__(self, settings: RunSettings, folder: Path, address: str | None) -> None:
        """Raises InputError for pools that can't be placed, or a name that is taken there."""
        self.settings, self._folder = settings, folder
        self._connects = not ray.is_initialized()
        if self._connects:
            connect(address)
        self._controller: Any = None
        try:
            self._launch()
        except BaseException:
            self.close()
            raise

    def _launch(self) -> None:
        check_room(demands(self.settings), free_nodes())
        name = controller_name(self.settings.name)
        context = ray.get_runtime_context()
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        try:
            self._controller = (
                ray.remote(Controller)
                .options(
                    name=name,
                    num_cpus=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False),
                )
                .remote(self.settings.model_copy(update={"runs": self.settings.runs.resolve()}), name, NAMESPACE)
            )
        except ValueError as error:
            raise InputError(
                f"a run named '{self.settings.name}' is going on on this cluster; take another name (name=...)"
            ) from error
        if application_name(self.settings.name) in serve.status().applications:
            serve.delete(application_name(self.settings.name))  # left by a run that was killed
        host = ray.util.get_node_ip_address()
        where = self._call(self._controller.start.remote(host, self.settings.logging.metrics_port or 0))
        address = ray.get_runtime_context().gcs_address
        Whereabouts(self.settings.name, address, f"http://{where}", os.environ.get(AUTH_MODE)).write(self._folder)

    def iterate(
        self,
        iteration: int,
        prompts: Sequence[str],
        upcoming: Sequence[str] | None = None,
        progress: Progress = lambda phase, share: None,
    ) -> IterationReport:
        answer = self._controller.iterate.remote(iteration, list(prompts), upcoming and list(upcoming))
        while not ray.wait([answer], timeout=POLL_SECONDS)[0]:
            progress(*self._call(self._controller.progress_now.remote()))
        report: IterationReport = self._call(answer)
        media = [np.concatenate(ray.get(parts)) for parts in report.media]
        return replace(report, media=media)

    def evaluate(self, prompts: Sequence[str]) -> Evaluation:
        prompts = sampled_prompts(prompts, self.settings)
        parts = self._call(self._controller.evaluate.remote(prompts))
        media = np.concatenate([ray.get(reference) for reference, _ in parts])
        rewards = {name: np.concatenate([scores[name] for _, scores in parts]) for name in self.settings.rewards}
        evaluation = Evaluation(prompts, media, rewards)
        self._call(self._controller.note_evaluation.remote(evaluation.means()))
        return evaluation

    def save(self, folder: Path) -> None:
        with whole(folder) as temporary:
            temporary.mkdir()
            self._call(self._controller.save.remote(temporary.resolve()))

    def load(self, folder: Path) -> None:
        self._call(self._controller.load.remote(folder.resolve()))

    def export(self, folder: Path) -> None:
        self._call(self._controller.export.remote(folder.resolve()))

    def close(self) -> None:
        """End the run's processes, its Serve application, and Ray if it was started here."""
        (self._folder / FILE).unlink(missing_ok=True)
        if self._controller is not None:
            try:
                ray.get(self._controller.close.remote(), timeout=60)
            except (ray.exceptions.RayError, TimeoutError) as error:
                logging.getLogger(__name__).warning("the controller could not end its pools: %s", error)
            ray.kill(self._controller)
        if self._connects:
            ray.shutdown()

    def _call(self, answer: Any) -> Any:
        """What a call of the controller returns, or the exception that went wrong in whichever process."""
        return unwrapped(lambda: ray.get(answer))
