"""What travels of FLUX.1-dev's trees: parts of its shapes and types, with nothing in them, and their bytes."""

import torch
from ray import cloudpickle

from ...proto.remote_tree import PartHeader, states_of
from ...proto.settings import RolloutSettings
from ...proto.tree import Conditioning, SampledPart, Task
from ...rollout_workers.policies.base import Network
from ...rollout_workers.worker import RolloutWorker
from .model_sizes import CHANNELS, PIXELS, POOLED_CHANNELS, TEXT_CHANNELS, TEXT_TOKENS, TOKENS


class ShapedPolicy:
    """States, pictures and conditioning of FLUX.1-dev's shapes and types, with nothing in them."""

    device, network = torch.device("cpu"), torch.nn.Identity()
    latent_shape = (TOKENS, CHANNELS)

    def sigmas(self, steps: int) -> list[float]:
        return [1 - i / steps for i in range(steps + 1)]

    encoding = "shaped"

    def release_encoders(self) -> None:
        """There are none."""

    def encode(self, prompt: str) -> Conditioning:
        return {
            "prompt_embeds": torch.zeros(TEXT_TOKENS, TEXT_CHANNELS, dtype=torch.bfloat16),
            "pooled_prompt_embeds": torch.zeros(POOLED_CHANNELS, dtype=torch.bfloat16),
        }

    def velocity(
        self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> torch.Tensor:
        return -latents.float()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.full((len(latents), PIXELS, PIXELS, 3), 0.5)


def sampled_tree(task: Task, rollout: RolloutSettings) -> list[SampledPart]:
    """The parts of a task as a worker with FLUX.1-dev hands them over."""
    return list(RolloutWorker(ShapedPolicy(), rollout).sample(task))  # type: ignore[arg-type]


def sizes(part: SampledPart) -> dict[str, int]:
    """Bytes of a tree's first part as it travels: header, pictures, states and what is constant among them."""
    states = states_of(part)
    conditioning = sum(packed.bits.nbytes for name, packed in states.items() if name != "latents")
    return {
        "header": pickled(PartHeader.of(part)),
        "nodes": len(part.nodes),
        "pictures": len(part.media),
        "picture": pickled(part.media) // len(part.media),
        "conditioning": conditioning,
        "state": (pickled(states) - conditioning) // len(part.nodes),
    }


def pickled(value: object) -> int:
    """Bytes of a value as Ray stores it: pickled, its arrays beside."""
    buffers: list[object] = []
    head = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return len(head) + sum(buffer.raw().nbytes for buffer in buffers)  # type: ignore[attr-defined]
