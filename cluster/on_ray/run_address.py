"""The address of a run on Ray: a file in its folder, written by its driver and read by `status` and `scale`.

Nothing here imports Ray, which reads its way of authentication when it is imported.
"""

import json
import os
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path

from ...proto.atomic_files import write_text
from ...proto.errors import InputError
from .address import AUTH_MODE, find_ray

FILE = "ray.json"


@dataclass(frozen=True)
class RunAddress:
    """A run, and the Ray cluster on which it is running."""

    run: str
    address: str | None = None
    """Address of the Ray cluster, as `host:port`; None for the one of this host."""
    http: str | None = None
    """URL of the controller's HTTP server."""
    auth_mode: str | None = None
    """Ray's authentication (`token` for a Ray that was started for the run)."""

    def write(self, folder: Path) -> None:
        """Record the address in a run folder."""
        write_text(folder / FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "RunAddress":
        """The address that a run folder records. Raises InputError if it can't be read."""
        path = folder / FILE
        try:
            noted = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} can't be read ({error}); the run rewrites it when it continues") from error
        kinds = {field.name: str if field.default is MISSING else str | None for field in fields(cls)}
        if (
            not isinstance(noted, dict)
            or noted.keys() - kinds.keys()
            or any(not isinstance(noted.get(name), kind) for name, kind in kinds.items())
        ):
            raise InputError(f"{path} isn't what this version writes; the run rewrites it when it continues")
        return cls(**noted)

    @classmethod
    def find(cls, run: str, address: str | None) -> "RunAddress":
        """The address of `run`, a name or a run folder. A given `address` wins over the folder's.

        Takes up its authentication in this process. Raises InputError for a path that is no run folder, and for a
        folder whose run isn't running.
        """
        folder = Path(run)
        if not (folder / "recipe.yaml").is_file():
            if os.sep in run:
                raise InputError(f"{run} is no run folder (it has no recipe.yaml)")
            return cls(run, address)
        found = cls.of_folder(folder)
        return found if address is None else cls(found.run, address)

    @classmethod
    def of_folder(cls, folder: Path) -> "RunAddress":
        """The address of the run in a folder. Adopts its authentication. Raises InputError if it isn't running."""
        if not (folder / FILE).is_file():
            raise InputError(f"the run in {folder} isn't running on Ray (there is no {FILE})")
        found = cls.read(folder)
        if found.auth_mode:
            os.environ.setdefault(AUTH_MODE, found.auth_mode)
        return found

    def found(self) -> "RunAddress":
        """This address with that of the Ray cluster that answered (`find_ray`)."""
        return replace(self, address=find_ray(self.address))
