"""The kind of GPU that a Ray cluster's nodes report."""

import pytest
from branchgrpo.cluster.on_ray.devices import smallest_gpu
from branchgrpo.proto.errors import InputError


@pytest.mark.parametrize(
    ("kinds", "name"), [(["H100"], "h100"), (["H200", "H100"], "h100"), (["GeForce-RTX-4090", "L40S"], "4090")]
)
def test_the_gpu_with_the_least_memory_counts(kinds: list[str], name: str) -> None:
    nodes = [{"CPU": 8.0, "GPU": 1.0, f"accelerator_type:{kind}": 1.0} for kind in kinds]
    assert smallest_gpu([*nodes, {"CPU": 4.0}]).name == name


@pytest.mark.parametrize(("kinds", "told"), [([], "none"), (["H100", "A100-40G"], "A100-40G")])
def test_other_kinds_are_named(kinds: list[str], told: str) -> None:
    with pytest.raises(InputError, match=rf"nothing is known \({told}\): give numbers"):
        smallest_gpu([{"CPU": 1.0}, *({f"accelerator_type:{kind}": 1.0} for kind in kinds)])
