"""Admission of HTTP requests: the token, and limits on simultaneous work."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from threading import Lock
from typing import Annotated

from fastapi import Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))]
RETRY = {"Retry-After": "1"}


class Admission:
    """Two dependencies of a FastAPI application, both at work before a request's body is read."""

    def __init__(self, token: str | None, at_once: int, bytes_at_once: int) -> None:
        """Without a `token` everybody may ask. `at_once` requests are worked on, more are refused; they may hold
        `bytes_at_once` together."""
        self._token, self._at_once, self._bytes = token, at_once, bytes_at_once
        self._inside, self._held, self._lock = 0, 0, Lock()

    async def known(self, credentials: Credentials) -> None:
        """Raises HTTPException 401 for a request without the token."""
        if self._token is None:
            return
        given = credentials.credentials if credentials else ""
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            why = "the bearer token is not the service's" if credentials else "there is no bearer token"
            raise HTTPException(
                401, f"{why}; send the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    async def room(self) -> AsyncIterator["Slot"]:
        """Holds a slot while a request is worked on. Raises HTTPException 429 where there is none."""
        if self._inside >= self._at_once:
            raise HTTPException(429, f"{self._at_once} requests are in progress, the maximum; try again", RETRY)
        self._inside += 1
        slot = Slot(self)
        try:
            yield slot
        finally:
            self._inside -= 1
            self._hold(-slot.held)

    def _hold(self, count: int) -> None:
        with self._lock:
            if count > 0 and self._held + count > self._bytes:
                raise HTTPException(
                    429, f"the requests being worked on hold {self._held} bytes of {self._bytes}; try again", RETRY
                )
            self._held += count


@dataclass
class Slot:
    """The bytes that one admitted request holds."""

    admission: Admission
    held: int = 0

    def reserve(self, count: int) -> None:
        """Notes that `count` bytes more are held, until the request is answered. From any thread.

        Raises HTTPException 429 where all requests together would hold too much.
        """
        self.admission._hold(count)
        self.held += count
