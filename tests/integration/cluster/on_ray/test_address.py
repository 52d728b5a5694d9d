"""Which Ray a command speaks to, and how it authenticates there."""

import socket

import pytest
from branchgrpo.benchmarks.support.local_cluster import free_port
from branchgrpo.cluster.on_ray import address as addresses
from branchgrpo.cluster.on_ray.address import find_ray
from branchgrpo.proto.errors import InputError
from support import RECIPES, done_by


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", "'nonsense' is no address of a Ray cluster; name its head as host:port"),
        ("localhost:99999", "'localhost:99999' is no address of a Ray"),
        ("http://head:8265", "'http://head:8265' is no address of a Ray"),
        ("nowhere.invalid:6379", "no Ray cluster can be reached at 'nowhere.invalid:6379'"),
        ("ray://127.0.0.1:{free}", "no Ray cluster can be reached at 'ray://127.0.0.1:"),
        ("127.0.0.1:{free}", "Connection refused"),
        ("127.0.0.1:{silent}", "is no head of a Ray that answers"),
    ],
)
def test_what_is_no_ray_is_told(address: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "SECONDS", 1)
    monkeypatch.delenv("RAY_AUTH_MODE")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        given = address.format(free=free_port(), silent=silent.getsockname()[1])
        with pytest.raises(InputError) as refusal:
            find_ray(given)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["node", "nonsense"], "'nonsense' is no address of a Ray"),
        (["drain", "--address", "nonsense"], "'nonsense' is no address of a Ray"),
        (["drain", "--seconds", "nan"], "--seconds is nan; it must be from 0 to"),
        (["scale", "mine", "--rollout-workers", "2", "--address", "127.0.0.1:1"], "no Ray cluster can be reached"),
        (["clean", "--address", "127.0.0.1:1"], "no Ray cluster can be reached"),
        (["draw-dashboards", "mine", "--minutes", "nan"], "--minutes is nan; it must be from 0 to"),
        (["draw-dashboards", "mine", "--minutes=-1"], "--minutes is -1; it must be from 0 to"),
        (["draw-dashboards", "mine", "--prometheus", "nonsense"], "--prometheus is 'nonsense', which doesn't answer"),
        (["submit", "{glyphs}", "runs=/tmp/none", "--address", "http://:x"], "no Ray cluster can be reached"),
    ],
)
def test_a_command_without_its_ray_says_so_in_a_line(arguments: list[str], message: str) -> None:
    glyphs = RECIPES / "glyphs.yaml"
    done = done_by(*(argument.replace("{glyphs}", str(glyphs)) for argument in arguments))
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert message in done.stderr
