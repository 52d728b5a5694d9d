"""The table of GPUs."""

import pytest
from branchgrpo.cluster.plan.gpus import GPUS, find_gpu, gpu_of_device
from branchgrpo.proto.errors import InputError


def test_a_gpu_is_found_by_its_name_and_by_that_of_its_device() -> None:
    assert find_gpu("H100") is GPUS["h100"] is gpu_of_device("NVIDIA H100 80GB HBM3")
    for other in ("NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB"):
        assert gpu_of_device(other) is None
    with pytest.raises(InputError, match=r"--gpu is h101; it must be h100, h200, a100, l40s, 4090, 5090"):
        find_gpu("h101")


def test_peaks_are_dense_and_depend_on_the_precision() -> None:
    """Tensor cores add two numbers of 16 bits in the time of one of 32; without TF32, float32 doesn't use them."""
    for gpu in GPUS.values():
        assert gpu.peak("bfloat16") > 1.9 * gpu.peak("float32")
        # The ridge of the roofline: a sparse peak, twice as high, would be above it.
        assert 80 < gpu.bfloat16 / gpu.bandwidth < 450
