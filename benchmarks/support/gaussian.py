"""A policy whose data are Gaussian, so that its velocity, and the law of its samples, are known exactly."""

from collections.abc import Callable, Sequence

import torch

from ...proto.tree import Conditioning
from ...rollout_workers.policies.base import Network


class Perturbation(torch.nn.Module):
    """Adds theta[prompt, step] * (G x + h) to a velocity: one parameter for each prompt and step."""

    def __init__(self, prompts: int, steps: int, g: torch.Tensor, h: torch.Tensor) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(torch.zeros(prompts, steps, dtype=torch.float64))
        self.g, self.h = g, h

    def forward(self, x: torch.Tensor, prompt: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.theta[prompt, step, None] * (x @ self.g.T + self.h),)


class GaussianPolicy:
    """Data ~ N(mean, covariance); prompts are numbers, and tell apart whose parameters are used.

    The velocity is linear, so a step of a linear kernel is a Gaussian one, and moments follow a recursion.
    """

    device = torch.device("cpu")

    def __init__(self, mean: Sequence[float], covariance: Sequence[Sequence[float]], steps: int, prompts: int) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float64)
        self.covariance = torch.tensor(covariance, dtype=torch.float64)
        self.steps = steps
        dimensions = len(mean)
        g = torch.linspace(-0.5, 1.0, dimensions**2, dtype=torch.float64).reshape(dimensions, dimensions)
        self.network = Perturbation(prompts, steps, g, torch.linspace(0.5, 1.5, dimensions, dtype=torch.float64))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (len(self.mean),)

    def sigmas(self, steps: int) -> list[float]:
        return [1 - i / steps for i in range(steps + 1)]

    def encode(self, prompt: str) -> Conditioning:
        return {"number": torch.tensor(int(prompt))}

    def linear_velocity(self, s: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrix and offset of the exact velocity E[eps - x0 | x] at noise level `s`."""
        marginal = (1 - s) ** 2 * self.covariance + s**2 * torch.eye(len(self.mean), dtype=torch.float64)
        slope = (s * torch.eye(len(self.mean), dtype=torch.float64) - (1 - s) * self.covariance) @ marginal.inverse()
        return slope, -slope @ self.mean * (1 - s) - self.mean

    def velocity(
        self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning, network: Network | None = None
    ) -> torch.Tensor:
        x = latents.double()
        steps = ((1 - sigma.double()) * self.steps).round().long()
        velocity = torch.empty_like(x)
        for step in steps.unique().tolist():
            slope, offset = self.linear_velocity(1 - step / self.steps)
            velocity[steps == step] = x[steps == step] @ slope.T + offset
        return velocity + (network or self.network)(x, conditioning["number"], steps)[0]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(latents), 1, 1, 3)

    encoding = "gaussian"

    def release_encoders(self) -> None:
        """There are none."""


def moments(
    policy: GaussianPolicy,
    transitions: Callable[[int], tuple[float, float, float]],
    steps: int,
    theta: torch.Tensor | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Exact mean and covariance of the state after 0 to `steps` steps of a sequential sample.

    `transitions` gives a, b and std of a step; `theta` float64 [steps] the parameters, which may carry a gradient.
    """
    dimensions = len(policy.mean)
    identity = torch.eye(dimensions, dtype=torch.float64)
    mean, covariance = torch.zeros(dimensions, dtype=torch.float64), identity
    followed = [(mean, covariance)]
    for step in range(steps):
        a, b, std = transitions(step)
        slope, offset = policy.linear_velocity(1 - step / steps)
        if theta is not None:
            slope, offset = slope + theta[step] * policy.network.g, offset + theta[step] * policy.network.h
        matrix = a * identity + b * slope
        mean = matrix @ mean + b * offset
        covariance = matrix @ covariance @ matrix.T + std**2 * identity
        followed.append((mean, covariance))
    return followed
