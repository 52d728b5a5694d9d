"""A mistake: prompt dropout, as supervised training has it, in a policy adapter that samples and learns."""

import torch
from branchgrpo.proto.tree import Conditioning
from branchgrpo.rollout_workers.policies.base import Network
from branchgrpo.rollout_workers.policies.flux import FluxPolicy


class PromptDropout(FluxPolicy):
    """Flux, with one prompt in ten left out of a forward pass.

    The sampler leaves out other prompts than the learner, which therefore computes other log-probabilities of the same
    edges.
    """

    def predict(
        self, network: Network, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """Velocity with a random tenth of the prompts left out."""
        kept = torch.rand(len(latents), device=latents.device) >= 0.1
        dropped = {name: value * kept.view(-1, *[1] * (value.ndim - 1)) for name, value in conditioning.items()}
        return super().predict(network, latents, sigma, dropped)
