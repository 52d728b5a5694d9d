"""The loop of a run on Ray, as its driver sees it: starts Ray and the controller, passes calls on, and notices when the
controller is dead or hangs.

What must not be lost (logs, pictures, checkpoints' names) stays with the driver; what must not pass through one process
(pictures, states, weights) goes from where it is made to where it is used.
"""

import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import tenacity
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...proto.atomic_files import is_full
from ...proto.errors import InputError, ProcessLost, RunFailed
from ...proto.exporter import listening
from ...proto.media import joined
from ...proto.settings import RunSettings
from ...proto.usage import Usage
from ..run import checkpoints
from ..run.evaluation import Evaluation, sampled_prompts
from ..run.loop import IterationReport, Progress
from ..run.own_modules import travelling
from ..run.samples import TreeSamples
from .address import AUTH_MODE
from .calls import unwrapped
from .connect import NAMESPACE, connect
from .controller import Controller
from .internals import shut_down
from .messages import ControllerState, Sizes
from .names import application_name, controller_name
from .placement import check_room, demands, free_nodes, wait_for_room
from .reward_deployment import RewardDeployment, serves_here, start_serve
from .run_address import FILE, RunAddress
from .status_server import reserve_port

POLL_SECONDS = 0.25
NAME_SECONDS = 30
"""Seconds to wait for an earlier driver's controller to end."""
PORT_SECONDS = 20
"""Seconds to wait for an ended controller to release its port."""
START_SECONDS = 300
"""Maximum seconds for a controller to start."""
ENDING_SECONDS = 60
"""Seconds to wait for the resources of an earlier driver's processes, which are being ended."""
NODES_SECONDS = 600
"""Minimum seconds to wait for room when a run restarts after a fault."""


class RayLoop:
    """A run on the Ray at `address` (default: RAY_ADDRESS), or on one that is started here and ended with the run.

    A Ray that this process is connected to already is used, and left as it is.
    """

    def __init__(self, settings: RunSettings, folder: Path, prompts: Sequence[str], address: str | None) -> None:
        """`folder` is the run's, `prompts` are those to train on.

        Raises InputError for pools that can't be placed, or a name that is taken there.
        """
        # Whole paths: a run doesn't need the directory that it was started in.
        self.settings = settings.model_copy(update={"runs": settings.runs.resolve()})
        self._folder, self._prompts = folder.resolve(), prompts
        self._rewards = RewardDeployment(
            settings, application_name(settings.name), (controller_name(settings.name), NAMESPACE)
        )
        self._connects = not ray.is_initialized()
        self._own_ray = self._connects and connect(address, travelling(settings))
        self._controller: Any = None
        self._started = False
        """Whether there is a controller that `close` must end in order."""
        self._recoveries, self._sizes = 0, Sizes()
        self._port: socket.socket | None = None
        """Reserves the port of the controller's HTTP server during the run."""
        try:
            self._controller = self._launch_controller()  # with the name, what an earlier driver left is ours
            self._find_room(left=self._end_leftovers())
            self._port = self._reserve_port(settings.logging.metrics_port or 0)
            self._start()
        except BaseException:
            self.close()
            raise

    def restart(self, *, lost: bool = True) -> None:
        """Restart all processes except the reward models, which Serve supervises."""
        self._recoveries += lost
        self._end_controller()
        # At once, for the reward models end when there is none.
        self._controller = self._launch_controller()
        wanted = [demand for demand in demands(self.settings) if not demand.pool.startswith("pools.rewards")]
        least = [replace(demand, count=1) if "rollout" in demand.pool else demand for demand in wanted]
        seconds = max(NODES_SECONDS, self.settings.pools.placement_timeout_seconds)
        if not wait_for_room(least, seconds):
            raise RunFailed(
                f"in {seconds:g} s the cluster had no room for the processes that were lost; continue later"
            )
        self._keep_port()
        self._start()

    def _end_leftovers(self) -> bool:
        """End the reward models that a killed driver of the run has left. Returns whether there were any."""
        left = (self._folder / FILE).exists()
        if not serves_here():
            return left
        start_serve()  # else Serve would ask the cluster that this process was connected to before
        return self._rewards.delete() or left

    def _find_room(self, left: bool) -> None:
        """Wait for room for the pools. Raises InputError if there is none in the time that the recipe allows.

        `left`: processes of the run's are being ended, and what they hold becomes free.
        """
        wanted = demands(self.settings)
        seconds = max(self.settings.pools.placement_timeout_seconds, ENDING_SECONDS if left else 0)
        if not (seconds and wait_for_room(wanted, seconds)):
            check_room(wanted, free_nodes())

    def _reserve_port(self, port: int) -> socket.socket:
        host, _ = listening(self.settings.logging.metrics_host, ray.util.get_node_ip_address())
        return reserve_port(host, port, PORT_SECONDS)

    def _keep_port(self) -> None:
        """Wait until the previous controller has released its port; take another one if it doesn't."""
        assert self._port
        port = self._port.getsockname()[1]
        try:
            self._reserve_port(port).close()  # it can be had once more only if nobody listens
        except InputError as error:
            self._port.close()
            self._port = self._reserve_port(0)
            now = self._port.getsockname()[1]
            logging.getLogger(__name__).warning("metrics and /sd have moved from port %d to %d: %s", port, now, error)

    def _start(self) -> None:
        """Have the controller launch all processes, and record its address."""
        assert self._port
        self._started = True
        answer = self._controller.start.remote(self._recoveries, self._port.getsockname()[1])
        start_serve()  # while the controller starts and launches the other processes
        where = self._call(answer, silent=START_SECONDS)
        address = ray.get_runtime_context().gcs_address
        noted = RunAddress(self.settings.name, address, f"http://{where}", os.environ.get(AUTH_MODE))
        try:
            noted.write(self._folder)
        except OSError as error:  # a full disk, say: who looks for the run needs it, the run doesn't
            logging.getLogger(__name__).warning("it could not be noted where the run is: %s", error)

    def _launch_controller(self) -> Any:
        """A new controller. Raises InputError if the run has another one that doesn't end in time."""
        name = controller_name(self.settings.name)
        here = ray.get_runtime_context().get_node_id()
        options = {
            "name": name,
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
        }
        try:
            # The controller of a driver that was killed just now still has the name.
            for attempt in tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(ValueError),
                wait=tenacity.wait_fixed(1),
                stop=tenacity.stop_after_delay(NAME_SECONDS),
                reraise=True,
            ):
                with attempt:
                    controller = ray.remote(Controller).options(**options)
                    return controller.remote(self.settings, self._prompts, name, NAMESPACE, self._sizes)
        except ValueError as error:
            if self._started:
                raise ProcessLost(f"the previous controller did not end within {NAME_SECONDS} s: {error}") from error
            raise InputError(
                f"a run named '{self.settings.name}' is running on this cluster; take another name (name=...)"
            ) from error

    def iterate(self, number: int, progress: Progress = lambda phase, share: None) -> IterationReport:
        wall, cpu = time.perf_counter(), time.process_time()
        report, shown = self._call(self._controller.iterate.remote(number), progress)
        media = unwrapped(lambda: [joined(ray.get(parts)) for *_, parts in shown])
        pairs = zip(shown, media, strict=True)
        samples = [TreeSamples(tree, prompt, scores, leaves) for (tree, prompt, scores, _), leaves in pairs]
        own = Usage(time.perf_counter() - wall, time.process_time() - cpu)
        return replace(report, samples=samples, usage={**report.usage, "driver": own})

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        cut: list[str] = self._call(self._controller.cut_prompts.remote(list(prompts)))
        return cut

    def evaluate(self, prompts: Sequence[str]) -> Evaluation:
        prompts = sampled_prompts(prompts, self.settings)
        rewards, references = self._call(self._controller.evaluate.remote(prompts))
        return Evaluation(prompts, joined(unwrapped(lambda: ray.get(references))).read("media"), rewards)

    def status(self) -> dict[str, Any]:
        """Finished iterations, the current phase, and every process, as plain data."""
        status: dict[str, Any] = self._call(self._controller.status.remote())
        return status

    def scale(self, rollout_workers: int | None, rewards: dict[str, int]) -> int:
        """Change the size of pools; returns how many processes wait for room. Raises InputError for one that can't be
        changed."""
        return int(self._call(self._controller.scale.remote(rollout_workers, rewards)))

    def save(self, folder: Path) -> None:
        try:
            with checkpoints.written(folder) as temporary:
                self._call(self._controller.save.remote(temporary))
        except OSError as error:
            if is_full(error) and self.settings.pools.learner.count > 1:
                # The other ranks wait for the one that has failed.
                raise ProcessLost(f"no checkpoint could be written: {error}") from error
            raise

    def load(self, folder: Path) -> None:
        self._call(self._controller.load.remote(folder.resolve()))

    def export(self, folder: Path) -> None:
        self._call(self._controller.export.remote(folder.resolve()))

    def close(self) -> None:
        """End the run's processes, its Serve application, and Ray if it was started here."""
        try:
            if self._started:
                (self._folder / FILE).unlink(missing_ok=True)
                self._end_controller()
                if not self._own_ray:  # which ends with all that is in it
                    self._rewards.delete()  # what was never started is not ours: another run may have the name
            elif self._controller is not None:
                ray.kill(self._controller)
        except (ray.exceptions.RayError, TimeoutError) as error:
            logging.getLogger(__name__).warning("the reward models could not be ended: %s", error)
        finally:
            if self._port:
                self._port.close()
            if self._connects:
                shut_down()

    def _end_controller(self) -> None:
        """End the controller, and with it all processes that it has launched."""
        if self._controller is None:
            return
        try:
            ray.get(self._controller.close.remote(), timeout=30)
        except ray.exceptions.RayError as error:  # it is dead or hangs; Ray ends what it has launched
            logging.getLogger(__name__).debug("the controller could not end its pools: %s", error)
        ray.kill(self._controller)
        self._controller = None

    def _call(self, answer: Any, progress: Progress = lambda phase, share: None, silent: float | None = None) -> Any:
        """The result of a call of the controller. Raises the original exception of any process.

        Raises ProcessLost if the controller is dead, or `silent` for longer than it may be.
        """
        ended = False
        while not ended:
            ended = bool(ray.wait([answer], timeout=POLL_SECONDS)[0])
            # After short calls too: the sizes of pools must outlive the controller.
            now = self._state(silent or self.settings.pools.heartbeat_timeout_seconds)
            self._sizes = now.sizes
            progress(now.phase, now.share)
        return unwrapped(lambda: ray.get(answer))

    def _state(self, limit: float) -> ControllerState:
        try:
            now: ControllerState = unwrapped(lambda: ray.get(self._controller.state_now.remote(), timeout=limit))
        except ray.exceptions.GetTimeoutError as error:
            ray.kill(self._controller)
            raise ProcessLost(f"the controller has given no sign of life for {limit:g} s") from error
        return now
