"""A file in answer to a request, or the part of it that was asked for: without parts, Safari plays no clip or sound."""

import re

from fastapi import Request, Response


def answer(request: Request, data: bytes, media_type: str, headers: dict[str, str]) -> Response:
    """`data`, or the part that a request's `Range` asks for; status 416 for a part that begins past the end.

    A request for several parts at once, or for a part of another version (`If-Range`), gets all, as RFC 9110 allows.
    """
    headers = {"Accept-Ranges": "bytes", **headers}
    part = _part(request.headers.get("range", ""), len(data))
    if part is None or request.headers.get("if-range", headers.get("ETag")) != headers.get("ETag"):
        return Response(data, media_type=media_type, headers=headers)
    if not part:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{len(data)}"})
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{len(data)}"
    return Response(data[part.start : part.stop], 206, headers, media_type)


def _part(asked: str, size: int) -> range | None:
    """The bytes that `bytes=FIRST-LAST` names, of which either may be missing; None if it isn't of this form."""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", asked)
    if found is None or found[0] == "bytes=-":
        return None
    first, last = found.groups()
    if not first:  # the last so many bytes
        return range(max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)
