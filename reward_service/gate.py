"""Who may ask for scores over HTTP, and how many at once."""

import secrets
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))]
RETRY = {"Retry-After": "1"}


class Gate:
    """Two dependencies of a FastAPI application, both at work before a request's body is read."""

    def __init__(self, token: str | None, at_once: int) -> None:
        """Without a `token` everybody may ask. `at_once` requests are worked on, more are refused."""
        self._token, self._at_once, self._inside = token, at_once, 0

    def known(self, credentials: Credentials) -> None:
        """Raises HTTPException 401 for a request without the token."""
        if self._token is None:
            return
        given = credentials.credentials if credentials else ""
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            why = "the bearer token is not the service's" if credentials else "there is no bearer token"
            raise HTTPException(
                401, f"{why}; send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    async def room(self) -> AsyncIterator[None]:
        """Holds a place while a request is worked on. Raises HTTPException 429 where there is none."""
        if self._inside >= self._at_once:
            raise HTTPException(
                429, f"{self._at_once} requests are being worked on, the most at once; try again", RETRY
            )
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
