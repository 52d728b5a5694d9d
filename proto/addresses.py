"""TCP ports of IPv4 and IPv6 addresses, and how such an address is written."""

import socket


def bound(host: str, port: int, *, listening: bool = False) -> socket.socket:
    """A socket that holds a port of `host` (0: a free one), and listens there if `listening`.

    `::` stands for all addresses of IPv4 too. Raises OSError if the port can't be had.
    """
    six = ":" in host
    held = socket.socket(socket.AF_INET6 if six else socket.AF_INET)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        held.bind((host, port))
        if listening:
            held.listen(2048)
    except BaseException:
        held.close()
        raise
    return held


def written(host: str, port: int) -> str:
    """`host:port` as URLs have it: an IPv6 address stands in brackets.

    >>> written("::1", 80), written("127.0.0.1", 80)
    ('[::1]:80', '127.0.0.1:80')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
