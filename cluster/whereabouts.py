"""Where a run on Ray goes on: a file in its folder, written by its driver and read by `status` and `scale`.

Nothing here imports Ray, which reads its way of authentication when it is imported.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ..proto.errors import InputError
from ..proto.files import write_text
from ..proto.recipe import load_recipe

FILE = "ray.json"
AUTH_MODE = "RAY_AUTH_MODE"


@dataclass(frozen=True)
class Whereabouts:
    """A run and the Ray that it goes on."""

    run: str
    address: str | None
    """Of Ray, as `host:port`; None for the Ray of this host."""
    http: str | None = None
    """URL of the controller's HTTP server."""
    auth_mode: str | None = None
    """Ray's authentication (`token` for a Ray that was started for the run)."""

    def write(self, folder: Path) -> None:
        write_text(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def find(cls, run: str, address: str | None) -> "Whereabouts":
        """Of `run`, a name or a run folder; a given `address` wins over the folder's.

        Takes up its authentication in this process. Raises InputError for a folder whose run isn't going on.
        """
        folder = Path(run)
        if not (folder / "recipe.yaml").is_file():
            return cls(run, address)
        if not (folder / FILE).is_file():
            name = load_recipe(folder / "recipe.yaml").name
            raise InputError(f"run '{name}' in {folder} isn't going on on Ray (there is no {FILE})")
        found = cls(**json.loads((folder / FILE).read_text()))
        if found.auth_mode:
            os.environ.setdefault(AUTH_MODE, found.auth_mode)
        return found if address is None else cls(found.run, address)
