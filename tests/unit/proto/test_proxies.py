"""A proxy that the environment names gets no requests for this machine."""

import socket

import pytest
import requests
from branchgrpo.proto.proxies import VARIABLES, spare_local_addresses


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("given", [{}, {"no_proxy": "a.example"}, {"NO_PROXY": "a.example"}], ids=str)
def test_local_addresses_are_asked_directly(
    variable: str, given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy", *VARIABLES):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in {variable: "http://127.0.0.1:1", **given}.items():
        monkeypatch.setenv(name, value)
    spare_local_addresses()
    spare_local_addresses()

    def proxied(host: str) -> bool:
        settings = requests.Session().merge_environment_settings(f"http://{host}:80/", {}, None, None, None)
        return bool(settings["proxies"])

    assert not any(proxied(host) for host in ("127.0.0.1", "localhost", "[::1]", socket.gethostname()))
    assert proxied("rewards.example")
    assert proxied("a.example") == (not given)
