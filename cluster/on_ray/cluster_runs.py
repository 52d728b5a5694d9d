"""The runs on a Ray cluster, as JSON: `python -m branchgrpo.cluster.on_ray.cluster_runs ADDRESS [RUN]`.

A process of its own, for `branchgrpo status` to end when the cluster doesn't answer.
"""

import json
import sys
from typing import Any

from ...proto.errors import InputError
from .address import find_ray

ANSWER_SECONDS = 2
"""Maximum seconds for a controller's answer."""


def statuses(address: str, run: str | None) -> dict[str, dict[str, Any] | None]:
    """Run -> what its controller tells; None for one that doesn't answer. Raises InputError for a run that isn't
    there."""
    address = find_ray(address)  # before Ray is imported
    import ray

    from .connect import named_controller, run_controllers, visiting

    with visiting(address):
        controllers = {run: named_controller(run)} if run else run_controllers()
        asked = {name: controller.status.remote() for name, controller in controllers.items()}
        answered, _ = (
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS) if asked else ([], [])
        )
        return {name: _answer(answer) if answer in answered else None for name, answer in asked.items()}


def _answer(answer: Any) -> dict[str, Any] | None:
    import ray

    try:
        return ray.get(answer)
    except ray.exceptions.RayError:  # the controller has just died
        return None


if __name__ == "__main__":
    try:
        print(json.dumps(statuses(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)))
    except InputError as error:
        sys.exit(str(error))
