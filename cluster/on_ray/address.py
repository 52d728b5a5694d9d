"""The Ray cluster that a command talks to: its address and its token.

Nothing here imports Ray, which reads its way of authentication when it is imported. What talks to a Ray is imported
where it does: `branchgrpo status` needs only to know what runs here, and has little time.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from ...proto.errors import InputError

AUTH_MODE = "RAY_AUTH_MODE"
RAY_ADDRESS = "RAY_ADDRESS"
HERE = "auto"
"""Stands for the Ray of this machine."""
OWN = "local"
"""Stands for a Ray that is started for the purpose."""
TOKEN = "RAY_AUTH_TOKEN"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
TOKEN_FILE = Path("~/.ray/auth_token")
"""Where Ray keeps its token, unless one of these variables says otherwise."""
SECONDS = 10
"""Maximum seconds for a Ray cluster's answer."""
TEMPORARY = ("RAY_TMPDIR", "TMPDIR")
"""Variables of which Ray takes the first that is set for its folder."""
MAX_SOCKET_PATH = 107
"""Bytes of a socket's path that the system takes."""
IS_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A question that the head of every Ray answers, to those who have its token."""


@dataclass(frozen=True)
class LocalNode:
    """A node of a Ray cluster that is processes of this machine."""

    address: str
    """Address of the cluster's head, as `host:port`."""
    node_id: str


def nodes_here() -> list[LocalNode]:
    """The nodes on this machine, of any cluster."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet":
            words = [word.removeprefix("--").partition("=") for word in process.info["cmdline"] or []]
            options = {name: value for name, _, value in words}
            if "gcs-address" in options and "node_id" in options:
                found.append(LocalNode(options["gcs-address"], options["node_id"]))
    return sorted(found, key=lambda node: (node.address, node.node_id))


def find_cluster(address: str | None) -> str | None:
    """`find_ray` for commands that can start a Ray cluster: None if neither `address` nor RAY_ADDRESS names one."""
    address = address or os.environ.get(RAY_ADDRESS)
    return None if address in (None, OWN) else find_ray(address)


def sockets_must_fit() -> None:
    """Raises InputError if the folder for Ray's sockets has too long a path for a Ray cluster that is started here."""
    name = next((name for name in TEMPORARY if name in os.environ), None)
    folder = os.environ[name] if name else "/tmp"
    longest = f"{folder}/ray/session_0000-00-00_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    if (size := len(os.fsencode(longest))) > MAX_SOCKET_PATH:
        raise InputError(
            f"{name} is '{folder}'; Ray's sockets there would have paths of {size} bytes, and the system takes "
            f"{MAX_SOCKET_PATH}: give Ray another folder, such as RAY_TMPDIR=/tmp"
        )


def find_ray(address: str | None) -> str:
    """`host:port` of the Ray at `address` (default: RAY_ADDRESS, or the Ray of this machine if there is one only).

    From then on this process authenticates as that Ray wants it. Raises InputError if none answers there, if its token
    isn't known here, or if it isn't clear which is meant.
    """
    known = os.environ.get(RAY_ADDRESS)
    address = known or HERE if address in (None, HERE) else address
    if address == HERE:
        address = _only_one_here()
    if address.startswith("ray://"):
        _must_listen(address, address.removeprefix("ray://"))
        return address
    _must_listen(address, address)
    if os.environ.get(AUTH_MODE) not in (None, "disabled", "token"):  # one of Ray's other ways
        return address
    _authenticate(address, partial(_refused, address))
    return address


def use_dashboard(url: str) -> None:
    """Authenticate as the Ray wants it whose dashboard is at `url`, http://HOST:PORT.

    Raises InputError if there is none, or if its token isn't known here.
    """
    import requests

    wrong = f"no Ray cluster can be reached at '{url}'; name its dashboard with --address, http://HEAD:8265"
    if not url.startswith(("http://", "https://")):
        raise InputError(wrong)

    def refused(token: str | None) -> bool:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            answer = requests.get(f"{url.rstrip('/')}/api/version", headers=headers, timeout=SECONDS)
        except (requests.RequestException, ValueError) as error:
            raise InputError(wrong) from error
        return answer.status_code in (401, 403)

    _authenticate(url, refused)


def token_path() -> Path:
    """File in which Ray looks for its token."""
    return Path(os.environ.get(TOKEN_PATH) or TOKEN_FILE).expanduser()


def _token() -> tuple[str, str | None]:
    """Where Ray looks for its token, and what is there. Raises InputError if it can't be read."""
    if token := os.environ.get(TOKEN, "").strip():
        return TOKEN, token
    path = token_path()
    try:
        return str(path), path.read_text(encoding="ascii").strip() or None
    except FileNotFoundError:
        return str(path), None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Ray's token in {path} can't be read: {_reason(error)}") from error


def _authenticate(address: str, refused: Callable[[str | None], bool]) -> None:
    """Have this process use the token that it knows, if a Ray is `refused` without one. Raises InputError if there is
    none, or if that is refused too."""
    if not refused(None):
        return
    source, token = _token()
    if token is None:
        raise InputError(
            f"the Ray cluster at '{address}' requires a token, and {token_path()} doesn't exist; copy it from the "
            f"machine of its head, or set {TOKEN}"
        )
    if refused(token):
        raise InputError(f"the Ray cluster at '{address}' rejects the token in {source}; it must be that of its head")
    os.environ[AUTH_MODE] = "token"


def _reason(error: Exception) -> str:
    """A library's error in a few words."""
    return getattr(error, "strerror", None) or str(error).splitlines()[0][:200]


def _only_one_here() -> str:
    found = sorted({node.address for node in nodes_here()})
    if not found:
        raise InputError("no Ray cluster runs on this machine; name the head of one with --address (host:port)")
    if len(found) > 1:
        raise InputError(f"several Ray clusters run on this machine, at {', '.join(found)}; name one with --address")
    return found[0]


def _must_listen(address: str, endpoint: str) -> None:
    """Raises InputError if nobody listens at `endpoint`, where Ray would try for minutes."""
    host, _, port = endpoint.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"'{address}' is no address of a Ray cluster; name its head as host:port, such as head:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
    except OSError as error:
        raise InputError(
            f"no Ray cluster can be reached at '{address}' ({_reason(error)}); name its head with --address"
        ) from error


def _refused(address: str, token: str | None) -> bool:
    """Whether the head at `address` answers nobody without another token. Raises InputError if it is no head."""
    import grpc

    metadata = (("authorization", f"Bearer {token}"),) if token else None
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(IS_ALIVE, request_serializer=bytes, response_deserializer=bytes)
        try:
            ask(b"", timeout=SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return True
            raise InputError(
                f"what listens at '{address}' is no head of a Ray that answers; name that with --address (host:port)"
            ) from error
    return False
