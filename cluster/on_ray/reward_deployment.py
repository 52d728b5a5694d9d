"""The reward models of a run as one Ray Serve application, with a deployment per model, called by handles.

The application belongs to the run: it is named after it and deleted with it. Nothing else of Serve is touched, because
others may use it. If the run ends without deleting the application, it deletes itself.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
import tenacity
from ray import serve
from ray.exceptions import ActorAlreadyExistsError, RayError
from ray.serve.schema import ApplicationStatus, DeploymentStatusOverview

from ... import __version__
from ...proto.atomic_files import leave_lost_directory
from ...proto.errors import InputError, RunFailed
from ...proto.exporter import start_exporter
from ...proto.logs import mark_warnings
from ...proto.media import Media
from ...proto.profiling import ProfileOrder
from ...proto.scoring import NotScored, is_final
from ...proto.settings import RewardPoolSettings, RewardSettings, RunSettings
from ...proto.tracing import start_tracing
from ...proto.usage import export
from ...reward_service import metrics
from ...reward_service.replica import Replica, Scored
from ...reward_service.scorers import precision_on_gpu, reward_models
from ..plan.utilisation import note_device
from .internals import versioned
from .placement import reward_pools
from .reward_client import RewardClient

SERVE_CONTROLLER = {"name": "SERVE_CONTROLLER_ACTOR", "namespace": "serve"}
"""The actor by which Serve is known on a cluster."""
QUIET_OPTIONS = {"log_level": "WARNING", "enable_access_log": False}
"""Serve would write a line for every request."""
WAITING_BATCHES = 8
"""Batches that may wait in a replica; more wait in the callers' queues."""
DRAIN_SECONDS = 0.1
"""Seconds between looks whether a replica that is to end has answered all its requests."""
LEASE_SECONDS = 60
"""Seconds that an application outlives its run. A run that restarts reclaims it sooner."""
LOOK_SECONDS = 5
PATIENCE_SECONDS = 60
"""Seconds after which a run goes on with one replica of each model."""
POLL_SECONDS = 0.1
LAST_LINES = 12
"""Lines of an installer's output that say why it failed."""


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(ActorAlreadyExistsError),
    wait=tenacity.wait_fixed(1),
    stop=tenacity.stop_after_attempt(10),
    reraise=True,
)
def start_serve() -> None:
    """Start Ray Serve on the cluster, unless it runs already. If several callers start it at once, one of them does."""
    # No proxy of Serve's: it would show the cluster's other applications too.
    serve.start(proxy_location="Disabled", logging_config=QUIET_OPTIONS)


def serves_here() -> bool:
    """Whether Ray Serve runs on the cluster that this process is connected to."""
    return SERVE_CONTROLLER in ray.util.list_named_actors(all_namespaces=True)


class ServedReplica:
    """A `Replica` in a Ray Serve deployment."""

    def __init__(
        self,
        model: str,
        rewards: Mapping[str, RewardSettings],
        settings: RewardPoolSettings,
        directory: tuple[str, str],
        trace: Path | None,
        metrics_host: str | None,
    ) -> None:
        """`directory` is name and namespace of the actor with the list of exporters; `trace`, a folder for spans;
        `metrics_host`, the address that metrics are served on, if not the node's own."""
        leave_lost_directory()
        mark_warnings()
        start_tracing(trace, "reward", model)
        self._failure: InputError | NotScored | None = None
        try:
            self._replica = Replica(model, rewards, settings)
        except (InputError, NotScored) as error:
            if not is_final(error):
                raise  # Serve starts it again
            self._failure = error
        if settings.gpus:
            import torch

            note_device(torch.device("cuda"), precision_on_gpu(model))
        metrics.export(model)
        export("scoring")
        self._waiting, self._seconds = metrics.REQUESTS_WAITING.labels(model), metrics.REQUEST_SECONDS.labels(model)
        name, namespace = directory
        start_exporter(
            metrics_host,
            ray.util.get_node_ip_address(),
            lambda address: ray.get_actor(name, namespace).register.remote(address, "reward", model),
        )

    async def failure(self) -> InputError | NotScored | None:
        """Why the model could not be loaded, if it could not."""
        return self._failure

    async def score(self, media: Media, prompts: Sequence[str], id: str, order: ProfileOrder | None = None) -> Scored:
        """The model's rewards of one request, or why it can't be scored."""
        if self._failure:
            return self._failure
        with self._waiting.track_inprogress(), self._seconds.time():
            return await self._replica.score(media, prompts, id, order)


class RewardDeployment:
    """The reward models of some settings as one Serve application."""

    def __init__(self, settings: RunSettings, name: str, directory: tuple[str, str], trace: Path | None = None) -> None:
        """`name` is the application's; `directory`, name and namespace of the actor that it belongs to, which keeps the
        list of exporters; `trace`, a folder for spans."""
        self.settings, self.name, self._directory, self._trace = settings, name, directory, trace

    @property
    def models(self) -> dict[str, dict[str, RewardSettings]]:
        """Model -> the rewards that it gives."""
        return reward_models(self.settings.rewards)

    def start(self, replicas: Mapping[str, int] = MappingProxyType({})) -> None:
        """Deploy the models, or bring them to other sizes, and wait until all replicas are up; or, after
        `PATIENCE_SECONDS`, until each model has one, and others still load or wait for room.

        `replicas` has the sizes that aren't the settings'. Processes get the caller's environment: packages, variables;
        and what a pool adds to it. Raises InputError if the environment of a pool can't be built, RunFailed if replicas
        don't come up for another reason.
        """
        start_serve()
        # Serve's controller, which starts them, may be another user's and have another environment.
        runtime_env = dict(ray.get_runtime_context().runtime_env)
        models, deployments = self.models, []
        for model, pool in reward_pools(self.settings).items():
            changes: dict[str, Any] = {"threads": self.settings.threads_of(pool)}
            if model in replicas:
                changes |= {"replicas": replicas[model], "max_replicas": None}
            pool, host = pool.model_copy(update=changes), self.settings.logging.metrics_host
            deployment = _deployment(model, pool, _environment(pool, runtime_env))
            deployments.append(deployment.bind(model, models[model], pool, self._directory, self._trace, host))
        root = serve.deployment(Models).options(
            **versioned(__version__),
            graceful_shutdown_wait_loop_s=DRAIN_SECONDS,
            ray_actor_options={"num_cpus": 0, "runtime_env": runtime_env},
        )
        application = root.bind(deployments, self.name, self._directory)
        target = serve.RunTarget(application, self.name, route_prefix=None, logging_config=QUIET_OPTIONS)
        # Serve itself would wait without end, and look every second.
        serve.run_many([target], wait_for_applications_running=False)
        begun = time.monotonic()
        while (found := serve.status().applications[self.name]).status != ApplicationStatus.RUNNING:
            if found.status == ApplicationStatus.DEPLOY_FAILED:
                raise self._failed(found.deployments)
            patient = time.monotonic() < begun + PATIENCE_SECONDS
            if not patient and all(self.running(model) for model in self.models):
                break
            time.sleep(POLL_SECONDS)

    def _failed(self, deployments: Mapping[str, DeploymentStatusOverview]) -> InputError | RunFailed:
        """Why replicas of the models can't start, by the messages of their deployments."""
        reasons = []
        for model in self.models:
            lines = [line for line in deployments[model].message.splitlines() if line.strip()][-LAST_LINES:]
            if "runtime_env" in deployments[model].message:
                self.delete()
                return InputError(
                    "\n".join([f"pools.rewards.{model}.runtime_env can't be built on the cluster:", *lines])
                )
            reasons += [f"reward model '{model}' doesn't start:", *lines] if lines else []
        return RunFailed("\n".join(reasons) or "the reward models don't start")

    def running(self, model: str) -> int:
        """Number of a model's replicas that are up."""
        return self.replicas().get(model, {}).get("RUNNING", 0)

    def client(self, retried: Callable[[str], None] = lambda model: None) -> RewardClient:
        """A client of the models. `retried` is called with the model at each retry."""
        timeouts = {model: pool.timeout_seconds for model, pool in reward_pools(self.settings).items()}
        return RewardClient(self.name, self.models, timeouts, retried)

    def replicas(self) -> dict[str, dict[str, int]]:
        """Model -> state -> number of its replicas in it."""
        application = serve.status().applications.get(self.name)
        found = application.deployments if application else {}
        return {m: {str(k): n for k, n in found[m].replica_states.items()} for m in self.models if m in found}

    def delete(self) -> bool:
        """End the models. Returns whether there was such an application."""
        if self.name not in serve.status().applications:
            return False
        serve.delete(self.name)
        return True


class Models:
    """Holds an application together, as Serve wants it: every model is called by a handle of its own.

    Deletes the application when the actor `directory`, which lives as long as the run, has been gone for a while.
    """

    def __init__(self, models: list[Any], application: str, directory: tuple[str, str]) -> None:
        self.models = models
        threading.Thread(target=_keep, args=(application, *directory), daemon=True, name="lease").start()


def _keep(application: str, owner: str, namespace: str) -> None:
    """Delete an application once its owner, an actor, hasn't been there for `LEASE_SECONDS`."""
    seen = time.monotonic()
    while time.monotonic() < seen + LEASE_SECONDS:
        time.sleep(LOOK_SECONDS)
        try:
            ray.get_actor(owner, namespace)
        except ValueError:  # there is none
            continue
        except RayError:  # the cluster can't tell at the moment
            logging.getLogger(__name__).debug("looking for '%s'", owner, exc_info=True)
        seen = time.monotonic()
    serve.delete(application)


def _environment(pool: RewardPoolSettings, caller: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's runtime environment with what a pool adds to it."""
    own = pool.runtime_env.model_dump(exclude_defaults=True)
    variables = {**caller.get("env_vars", {}), **own.pop("env_vars", {})}
    return {**caller, **own, "env_vars": variables}


def _deployment(model: str, pool: RewardPoolSettings, runtime_env: dict[str, Any]) -> serve.Deployment:
    """A deployment with a version, so that a change of its size alone restarts no replica."""
    size: dict[str, Any] = {"num_replicas": pool.replicas}
    if pool.max_replicas is not None and pool.max_replicas > pool.replicas:
        size = {
            "autoscaling_config": {
                "min_replicas": pool.replicas,
                "max_replicas": pool.max_replicas,
                "target_ongoing_requests": 2,
            }
        }
    actor: dict[str, Any] = {
        "num_cpus": pool.cpus,
        "num_gpus": pool.gpus,
        "resources": dict(pool.resources),
        "runtime_env": runtime_env,
    }
    if pool.labels:
        actor["label_selector"] = dict(pool.labels)
    return serve.deployment(ServedReplica).options(
        name=model,
        **versioned(__version__),
        # A batch can't fill unless as many requests are let in.
        max_ongoing_requests=WAITING_BATCHES * pool.batch_pictures,
        # A replica that hangs is replaced after three checks.
        health_check_period_s=5,
        health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=DRAIN_SECONDS,
        ray_actor_options=actor,
        **size,
    )
