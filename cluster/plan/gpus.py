"""The GPUs that a plan knows: peaks, memory and links, as their makers publish them. What links reach is assumed."""

from dataclasses import dataclass

from ...proto.errors import InputError

LINK = 0.4
"""Share of a link's peak that collectives and copies reach; assumed."""
BETWEEN_NODES = 400e9
"""Bytes per second of a node's links to others, which work side by side in collectives: eight InfiniBand ports of
400 Gb/s; assumed."""
OBJECT_STORE = 5e9
"""Bytes per second that Ray's object store moves out of a node, and into one; assumed."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU. FLOP/s are dense, bytes per second are those of one direction."""

    name: str
    """Name that `--gpu` takes."""
    device: str
    """Name that `torch.cuda.get_device_name` returns."""
    bfloat16: float
    """FLOP/s of a matrix multiplication that adds up in float32."""
    float32: float
    """FLOP/s without TF32, which torch leaves off."""
    memory: float
    """Bytes of memory that are planned with. The device has up to 7 % more, which the driver may take."""
    bandwidth: float
    """Bytes per second of its memory."""
    peers: float
    """Bytes per second to the other GPUs of its node."""
    host: float
    """Bytes per second to the main memory."""
    source: str

    def peak(self, precision: str) -> float:
        """FLOP/s in a policy's precision."""
        return self.float32 if precision == "float32" else self.bfloat16

    @property
    def copies(self) -> float:
        """Bytes per second that reach it from the main memory."""
        return LINK * self.host

    def collectives(self, *, across_nodes: bool) -> float:
        """Bytes per second of what ranks exchange, on one node or across several."""
        return LINK * (min(self.peers, BETWEEN_NODES) if across_nodes else self.peers)


PCIE_4, PCIE_5 = 32e9, 64e9
"""Bytes per second of sixteen lanes."""
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="h100",
            device="NVIDIA H100 80GB HBM3",
            bfloat16=989e12,
            float32=67e12,
            memory=80e9,
            bandwidth=3.35e12,
            peers=450e9,
            host=PCIE_5,
            source="NVIDIA H100 data sheet, SXM",
        ),
        Gpu(
            name="h200",
            device="NVIDIA H200",
            bfloat16=989e12,
            float32=67e12,
            memory=141e9,
            bandwidth=4.8e12,
            peers=450e9,
            host=PCIE_5,
            source="NVIDIA H200 data sheet, SXM",
        ),
        Gpu(
            name="a100",
            device="NVIDIA A100-SXM4-80GB",
            bfloat16=312e12,
            float32=19.5e12,
            memory=80e9,
            bandwidth=2.039e12,
            peers=300e9,
            host=PCIE_4,
            source="NVIDIA A100 data sheet, 80 GB SXM",
        ),
        Gpu(
            name="l40s",
            device="NVIDIA L40S",
            bfloat16=362e12,
            float32=91.6e12,
            memory=48e9,
            bandwidth=864e9,
            peers=PCIE_4,
            host=PCIE_4,
            source="NVIDIA L40S data sheet",
        ),
        Gpu(
            name="4090",
            device="NVIDIA GeForce RTX 4090",
            bfloat16=165.2e12,
            float32=82.6e12,
            memory=24e9,
            bandwidth=1.008e12,
            peers=PCIE_4,
            host=PCIE_4,
            source="NVIDIA Ada GPU architecture white paper",
        ),
        Gpu(
            name="5090",
            device="NVIDIA GeForce RTX 5090",
            bfloat16=209.5e12,
            float32=104.8e12,
            memory=32e9,
            bandwidth=1.792e12,
            peers=PCIE_5,
            host=PCIE_5,
            source="NVIDIA RTX Blackwell GPU architecture white paper",
        ),
    )
}
"""Name -> GPU."""


def find_gpu(name: str, *others: str) -> Gpu:
    """The GPU of a name. Raises InputError, naming what else could be given, for an unknown one."""
    if name.lower() not in GPUS:
        raise InputError(f"--gpu is {name}; it must be {', '.join([*GPUS, *others])}")
    return GPUS[name.lower()]


def gpu_of_device(device: str) -> Gpu | None:
    """The GPU that torch calls by this name, or None: variants with the same number, such as those for laptops, have
    other peaks."""
    return next((gpu for gpu in GPUS.values() if gpu.device == device), None)
