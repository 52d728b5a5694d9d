"""Which Ray cluster is meant, where several are or none is, and notes that are broken."""

from pathlib import Path

import pytest
from branchgrpo.cluster.on_ray import address as addresses
from branchgrpo.cluster.on_ray.address import LocalNode, find_cluster, find_ray
from branchgrpo.cluster.on_ray.run_address import RunAddress
from branchgrpo.proto.errors import InputError


def test_no_ray_is_guessed_among_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    two = [LocalNode("10.0.0.1:6379", "a"), LocalNode("10.0.0.1:6380", "b")]
    monkeypatch.setattr(addresses, "nodes_here", lambda: two)
    with pytest.raises(
        InputError, match="several Ray clusters run on this machine, at 10.0.0.1:6379, 10.0.0.1:6380; name one"
    ):
        find_ray(None)
    monkeypatch.setattr(addresses, "nodes_here", list)
    with pytest.raises(InputError, match="no Ray cluster runs on this machine"):
        find_ray("auto")
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    with pytest.raises(InputError, match="'nonsense' is no address of a Ray"):
        find_ray("auto")
    monkeypatch.delenv("RAY_ADDRESS")
    assert find_cluster(None) is None
    assert find_cluster("local") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "can't be read"),
        ('{"run": "a", "addr', "can't be read"),
        (b"\xff\xfe", "can't be read"),
        ("[]", "isn't what this version writes"),
        ('{"run": "a", "later": 1}', "isn't what this version writes"),
        ('{"run": 1}', "isn't what this version writes"),
        ('{"address": "a:1"}', "isn't what this version writes"),
    ],
)
def test_a_note_that_is_broken_is_told(content: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: a\n")
    (tmp_path / "ray.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        RunAddress.find(str(tmp_path), None)
