"""Names of a run within Ray, which allows only ASCII and reserves some characters."""

import hashlib
from urllib.parse import quote, unquote

MAX_NAME = 100
"""Characters of a run in Ray's names, of which it makes names of files."""


def controller_name(run: str) -> str:
    """Name of a run's controller actor."""
    return f"controller-{_encoded(run)}"


def application_name(run: str) -> str:
    """Name of a run's Ray Serve application."""
    return f"branchgrpo-{_encoded(run)}"


def service_name(name: str) -> str:
    """Name of a Ray Serve application that serves others; no run's begins so."""
    return f"branchgrpo_rewards-{_encoded(name)}"


def run_of(controller: str) -> str | None:
    """The run whose controller has this name; None if it is no controller's."""
    prefix = controller_name("")
    return _decoded(controller.removeprefix(prefix)) if controller.startswith(prefix) else None


def given_name(application: str) -> str:
    """The name that was given to the run, or to the service, of an application; a long one is cut, with its digest."""
    prefix = next(prefix for prefix in (service_name(""), application_name("")) if application.startswith(prefix))
    return _decoded(application.removeprefix(prefix))


def controller_of(application: str) -> str | None:
    """Name of the controller of a run's Ray Serve application; None for any other application."""
    prefix = application_name("")
    return controller_name("") + application.removeprefix(prefix) if application.startswith(prefix) else None


def _encoded(name: str) -> str:
    """Letters, digits and `_.-~`; `=C3=A9` stands for é. The end of a long name is its digest."""
    encoded = quote(name, safe="").replace("%", "=")  # Ray's own logs would take a % for a format
    if len(encoded) <= MAX_NAME:
        return encoded
    return f"{encoded[: MAX_NAME - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _decoded(name: str) -> str:
    return unquote(name.replace("=", "%"))
