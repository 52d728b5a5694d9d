"""`branchgrpo view`: the server of the pages about runs, until Ctrl-C, and one page as a file."""

import asyncio
import signal
import webbrowser
from pathlib import Path

from rich.console import Console

from ...proto.errors import InputError
from ...reward_service.http_server import answer, check_reach, listen, url_of
from ..run.stop import StopRequest
from ..view.export import export as write_page
from ..view.runs import Runs
from ..view.server import create_app


def view(runs: Path, console: Console, *, host: str, port: int, token: str | None, open_browser: bool) -> None:
    """Serve the pages about the runs in a folder until SIGTERM, SIGHUP or Ctrl-C.

    Raises InputError if there is no such folder, if the port can't be had, or for a `host` that others reach without a
    token.
    """
    check_reach(host, token)
    app = create_app(Runs(runs), token)
    with StopRequest().listening(signal.SIGHUP) as stop, listen(host, port) as listener:
        url = url_of(host, listener)
        console.print(f"runs in {runs}: {url}", markup=False, highlight=False, soft_wrap=True)
        if token:
            console.print("the browser asks for a password: it is the token; any name will do")
        if open_browser:
            webbrowser.open(url)
        asyncio.run(answer(app, listener, lambda: stop.signum is not None))


def export(folder: Path, out: Path, iteration: int | None, console: Console) -> None:
    """Write the page about the run in a folder into the new file `out`. Raises InputError if it isn't a run's."""
    runs = Runs(folder)
    if not runs.single:
        raise InputError(f"--export writes about one run, and {folder} isn't the folder of one")
    (run,) = runs.all()
    write_page(run, out, iteration)
    for file, why in run.problems.items():
        console.print(f"warning: {file} {why}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    size = out.stat().st_size / 2**20
    console.print(f"exported: {out} ({size:.1f} MiB)", markup=False, highlight=False, soft_wrap=True)
