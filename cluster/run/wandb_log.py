"""The log of a run at Weights & Biases (W&B): a step for every iteration, written whole, and once.

wandb.json in the run folder keeps the id of the W&B run, and the last step that was written. A run that goes on, after
`--resume` or a recovery, goes on there too: what it does again it doesn't write again, since it comes out the same. W&B
can't take a step back. So when a run returns to an earlier checkpoint, or goes on with other settings from one, the
file is set aside with what comes after that checkpoint (`change_log.py`), and a new W&B run of the same group begins
with the figures up to there.

Offline, a killed driver or helper process of W&B loses what W&B has not written to disk yet: those steps are not
written again. Online the server says what it has, and gets the rest.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

from ...proto.atomic_files import is_full, write_text
from ...proto.errors import InputError
from ...proto.settings import RunSettings

FILE = "wandb.json"

KINDS = {b"\x89PNG": ("png", "Image"), b"GIF8": ("gif", "Video"), b"RIFF": ("wav", "Audio")}
"""How a file begins -> the ending of its name, and what W&B calls it."""


class WandbLog:
    """The W&B run of a run folder.

    If W&B fails, for instance because its helper process is gone, the run goes on without it: this warns, and adds
    nothing more. W&B gets what it lacks when the run is resumed.
    """

    def __init__(self, folder: Path, settings: RunSettings) -> None:
        """Begin the W&B run, or go on with it, also with one that is still open. Raises InputError if W&B refuses."""
        import wandb  # only where a recipe asks for it

        self._file, kept = folder / FILE, _read(folder)
        self._id, self._last = kept.get("id") or token_hex(6), last_step(folder)
        self._row: dict[str, Any] = {}
        self._pictures: dict[str, bytes] = {}
        self._iteration: int | None = None
        """Iteration of the row that isn't written yet."""
        self._failed = False
        self._keep()
        if wandb.run is not None and wandb.run.id == self._id:
            self._run = wandb.run  # left open for this
            return
        try:
            self._run = wandb.init(
                project=settings.logging.wandb_project,
                id=self._id,
                resume="allow",
                name=settings.name,
                group=settings.name,
                dir=str(folder),
                config=settings.model_dump(mode="json"),
                allow_val_change=True,
                reinit="finish_previous",
            )
        except wandb.Error as error:
            raise InputError(
                f"logging.wandb_project is '{settings.logging.wandb_project}', and Weights & Biases refused the run "
                f"({error}); log in with `wandb login`, set WANDB_MODE=offline, or remove {self._file} for a new run"
            ) from error
        if self._run.resumed:  # what its server has may be less than what was sent
            self._last = self._run.starting_step - 1

    def catch_up(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Add the scalars of iterations that the folder holds and W&B doesn't have; `rows` ascend."""
        for iteration, values in rows.items():
            self.add(iteration, values)

    def add(
        self, iteration: int, values: Mapping[str, float] | None = None, pictures: Mapping[str, bytes] | None = None
    ) -> None:
        """Add scalars, and pictures as `RunLog.pictures` has them, to an iteration unless it was written; earlier ones
        are written now."""
        if self._failed or iteration <= self._last:
            return
        if self._iteration is not None and self._iteration < iteration:
            self.complete(self._iteration)
        self._iteration = iteration
        self._row.update(values or {})
        self._pictures.update(pictures or {})

    def complete(self, iteration: int) -> None:
        """Write the row of an iteration, to which nothing more can be added."""
        if self._failed or self._iteration != iteration:
            return
        import wandb

        self._last = iteration
        self._keep()  # first: this may fail for a full disk, and be called again
        with self._outlived(), TemporaryDirectory() as folder:
            shown = {}
            for number, (name, data) in enumerate(self._pictures.items()):
                ending, kind = next((ending, kind) for start, (ending, kind) in KINDS.items() if data.startswith(start))
                path = Path(folder) / f"{number}.{ending}"
                path.write_bytes(data)
                shown[name] = getattr(wandb, kind)(str(path))
            self._run.log({**self._row, **shown}, step=iteration, commit=True)
        if self._failed:
            self._last = iteration - 1
            self._keep()
        self._row, self._pictures, self._iteration = {}, {}, None

    def close(self) -> None:
        """End the W&B run for now. A row that isn't complete isn't written: what goes on will log it again."""
        if not self._failed:
            with self._outlived():
                self._run.finish()

    @contextmanager
    def _outlived(self) -> Iterator[None]:
        """What W&B raises inside ends its part in the run, not the run, unless it tells of a full disk."""
        try:
            yield
        except Exception as error:
            if is_full(error):
                raise
            self._failed = True
            logging.getLogger(__name__).warning(
                "logging to Weights & Biases has failed (%s), and the run goes on without it: its figures are in the "
                "run folder, and Weights & Biases gets what it lacks at the next resume",
                error,
            )
            import wandb

            with suppress(Exception):  # the next run shall have a helper process of its own
                wandb.teardown()

    def _keep(self) -> None:
        write_text(self._file, json.dumps({"id": self._id, "step": self._last}) + "\n")


def last_step(folder: Path) -> int:
    """The last step that the W&B run of a run folder has; -1 if it has none."""
    return int(_read(folder).get("step", -1))


def _read(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    try:
        found = json.loads(file.read_text()) if file.exists() else {}
        if not isinstance(found, dict) or not isinstance(found.get("step", -1), int):
            raise ValueError("it holds no step")
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); remove it, and a new run begins at W&B") from error
    return found
