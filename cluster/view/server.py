"""The web pages about runs: a FastAPI application that reads, and changes nothing."""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Annotated
from urllib.parse import quote, urlencode

from fastapi import Depends, FastAPI, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBasic, HTTPBasicCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ...proto.errors import InputError
from . import compare_page, parts, runs_page, sections
from .pages import render
from .runs import Run, Runs
from .static_files import SCRIPTS, address, static_file

HEADERS = {
    # Nothing of another host is loaded, and no script within a page is run: texts of run folders stay texts.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
LOOPBACK = ["127.0.0.1", "localhost", "[::1]", "::1"]
Password = Annotated[HTTPBasicCredentials | None, Depends(HTTPBasic(auto_error=False))]
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


class ServerLinks:
    """Addresses on this server."""

    def __init__(self, run: Run) -> None:
        self._run = quote(run.name)

    def picture(self, name: str) -> str:
        """The address of a picture of the run."""
        return f"/picture/{self._run}?{urlencode({'of': name})}"

    def section(self, name: str, **asked: object) -> str:
        """The address of a section of the run."""
        return f"/{name}/{self._run}" + (f"?{urlencode(asked)}" if asked else "")


def create_app(runs: Runs, token: str | None = None) -> FastAPI:
    """The application about `runs`. With a `token`, every request must have it: as a bearer token, or as the password
    of any name. Without one it answers only those who call it by a name of this machine's loopback."""

    async def known(password: Password, bearer: Bearer) -> None:
        given = password.password if password else bearer.credentials if bearer else ""
        if token is not None and not secrets.compare_digest(given.encode(), token.encode()):
            raise HTTPException(
                401, "the password is the token; any name will do", {"WWW-Authenticate": 'Basic realm="BranchGRPO"'}
            )

    app = FastAPI(openapi_url=None, dependencies=[Depends(known)])
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=3)
    if token is None:  # a page of another site, whose name it has lead here, must not read this one
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)
    summaries = runs_page.Summaries()

    @app.middleware("http")
    async def add_headers(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        content = render("message.html", title=f"{error.status_code}", text=error.detail)
        return _html(_page("Not found", content, runs), status=error.status_code, headers=error.headers)

    @app.get("/")
    def all_runs(request: Request) -> Response:
        if runs.single:
            return Response(status_code=307, headers={"Location": f"/overview/{quote(runs.all()[0].name)}"})
        stamp = runs_page.stamp(runs)
        if _has(request, stamp):
            return Response(status_code=304)
        return _html(_page("Runs", runs_page.runs_page(runs, summaries), runs, stamp), stamp)

    @app.get("/compare")
    def compare(request: Request) -> Response:
        chosen = [_run(runs, name) for name in dict.fromkeys(request.query_params.getlist("run"))]
        stamp = sha256(repr([(run.name, run.stamp()) for run in chosen]).encode()).hexdigest()[:16]
        if _has(request, stamp):
            return Response(status_code=304)
        try:
            content = compare_page.compare(chosen, request.query_params)
        except InputError as error:
            content = render("message.html", title="Not found", text=str(error))
        return _html(_page("Compare", content, runs, stamp), stamp)

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in SCRIPTS:
            raise HTTPException(404, f"there is no {name}")
        kept = {"Cache-Control": "max-age=31536000, immutable"}  # its address has its digest
        return Response(static_file(name), media_type=SCRIPTS[name], headers=kept)

    @app.get("/picture/{name:path}")
    def picture(request: Request, name: str, of: str = "") -> Response:
        run = _run(runs, name)
        stamp = run.stamp()
        if _has(request, stamp):
            return Response(status_code=304)
        try:
            found = sections.picture(run, of)
        except LookupError:
            raise HTTPException(404, f"the run has no picture '{of[:80]}'") from None
        return parts.answer(request, found.data, found.media_type, _tag(stamp))

    @app.get("/{section}/{name:path}")
    def section(request: Request, section: str, name: str) -> Response:
        if section not in sections.SECTIONS:
            raise HTTPException(404, f"there is no page '{section[:80]}'")
        run = _run(runs, name)
        stamp = run.stamp()
        if _has(request, stamp):
            return Response(status_code=304)
        links = ServerLinks(run)
        try:
            content = sections.section(run, section, request.query_params, links)
        except InputError as error:
            content = render("message.html", title="Not found", text=str(error))
        known = {"run": run, "status": run.status, "links": links, "sections": sections.SECTIONS}
        content = render("run.html", section=section, content=content, **known)
        return _html(_page(run.name, content, runs, stamp), stamp)

    return app


def _run(runs: Runs, name: str) -> Run:
    try:
        return runs.open(name)
    except InputError as error:
        raise HTTPException(404, str(error)) from None


def _page(title: str, content: str, runs: Runs, stamp: str = "") -> str:
    known = {"scripts": SCRIPTS, "address": address, "single": runs.single}
    return render("page.html", title=title, content=content, stamp=stamp, **known)


def _html(page: str, stamp: str | None = None, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(page, status, {**(headers or {}), **_tag(stamp)}, "text/html")


def _tag(stamp: str | None) -> dict[str, str]:
    """Headers by which a browser asks again, and is sent nothing if nothing has changed."""
    return {"Cache-Control": "no-cache", **({"ETag": f'"{stamp}"'} if stamp else {})}


def _has(request: Request, stamp: str) -> bool:
    return stamp in request.headers.get("if-none-match", "")
