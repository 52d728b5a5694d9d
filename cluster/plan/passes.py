"""What the passes of a run through its networks take, measured on shapes: floating-point operations, and bytes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...proto.errors import InputError
from ...proto.settings import RunSettings
from ...proto.tree import Conditioning
from ...rollout_workers.policies.base import collate, trainable
from ...rollout_workers.policies.decoded import Decoded
from ...rollout_workers.policies.weights import one_line
from .meter import Meter, metered
from .reward_shapes import LeafShape, Model, reward_shapes, weight_bytes
from .shapes import conditioning_shapes, pictures_per_prompt, policy_shapes


@dataclass(frozen=True)
class Pass:
    """A pass of some rows, leaves or pictures, beside the weights. Bytes that weren't asked for are NaN."""

    flops: float
    """Floating-point operations of one row."""
    fixed: float
    """Bytes at the peak, whatever the number of rows."""
    each: float
    """Bytes at the peak for each row."""

    def bytes(self, rows: float) -> float:
        """Bytes that are held at the peak of a pass of so many rows."""
        return self.fixed + self.each * rows

    def rows(self, room: float) -> int:
        """The maximum number of rows whose pass fits into so many bytes."""
        return max(int((room - self.fixed) / self.each), 0)


@dataclass(frozen=True)
class Passes:
    """The passes of a run, and the parameters of what they go through."""

    parameters: int
    """Number of parameters of the network and its adapters."""
    trained: int
    """Number of trained parameters."""
    forward: Pass
    """Rows of the rollout, without gradients; twice the rows where guidance takes them."""
    train: Pass
    """Rows of a micro-batch, forward and backward, with gradients handed on parameter by parameter."""
    keep: Pass | None
    """With `learner.keep_graph`, rows of the rollout whose graphs are kept: bytes after the pass."""
    decode: Pass
    """Leaves, in one batch."""
    score: Mapping[str, Pass | None]
    """Reward -> pictures, clips or windows of sound through its model; None if that isn't known."""
    rewards: Mapping[str, Model]
    """Reward -> its model; without those that aren't known."""
    around: float
    """Bytes of the weights of the autoencoder, and of what else decodes."""
    encoders: float
    """Bytes of the text encoders' weights."""
    state: int
    """Numbers in a state."""
    leaf: Mapping[str, int]
    """`pictures`, `sound` or both -> its numbers in a decoded leaf."""
    conditioning: float
    """Bytes of a prompt's conditioning."""


_measured: list[tuple[Any, bool, Passes]] = []
"""The settings that passes depend on, whether bytes were measured, and the passes.

Settings are compared, not hashed: 50 is 50.0.
"""


def measure(settings: RunSettings, policy: Any = None, *, memory: bool = True) -> Passes:
    """Measure all passes on shapes: in this process once for a policy, its adapters and rewards.

    Without `memory`, FLOPs alone are found, in half the time. The settings' `policy_shapes` may be given. Raises
    InputError as that does, and for a network or own code that can't be called on shapes.
    """
    learner, prompts = settings.learner, settings.prompts
    adapted = learner.lora, learner.gradient_checkpointing, learner.keep_graph
    decisive = settings.policy, adapted, settings.rewards, prompts.train, prompts.column, prompts.picture_column
    for known, has_memory, passes in _measured:
        if known == decisive and has_memory >= memory:
            return passes
    policy = policy or policy_shapes(settings)
    try:
        passes = _measure(settings, policy, pictures_per_prompt(prompts), memory)
    except Exception as error:  # of a library or of own code, which expects numbers
        name = type(policy).__name__
        raise InputError(f"the passes of a {name} can't be measured on shapes: {one_line(error)}") from error
    _measured.append((decisive, memory, passes))
    return passes


class Calls:
    """The calls of a policy whose passes are measured: on shapes, or on real tensors."""

    def __init__(self, policy: Any, conditioning: Conditioning, device: str | torch.device = "meta") -> None:
        self._policy, self._conditioning, self._device = policy, conditioning, device

    def velocity(self, rows: int) -> torch.Tensor:
        """A pass through the network, of which the graph is kept."""
        own = torch.device(self._device)
        sigma = torch.full([rows], 0.5, device="cpu" if own.type == "meta" else own)
        predicted: torch.Tensor = self._policy.velocity(self._states(rows), sigma, collate([self._conditioning] * rows))
        return predicted

    @torch.no_grad()
    def forward(self, rows: int) -> torch.Tensor:
        """A pass of the rollout."""
        return self.velocity(rows)

    def train(self, rows: int) -> None:
        """The passes of a micro-batch. No weight keeps its gradient: the learner's engine takes it at once."""
        weights = trainable(self._policy.network).values()
        hooks = [weight.register_post_accumulate_grad_hook(_clear) for weight in weights]
        try:
            if (predicted := self.velocity(rows)).requires_grad:
                predicted.float().square().mean().backward()
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def decode(self, leaves: int) -> Decoded:
        """Leaves of states."""
        return Decoded.of(self._policy.decode(self._states(leaves)))

    def _states(self, rows: int) -> torch.Tensor:
        return torch.zeros(rows, *self._policy.latent_shape, device=self._device)


def number_bytes(precision: str) -> int:
    """Bytes of a number in a precision, such as bfloat16."""
    size: int = getattr(torch, precision).itemsize
    return size


def _clear(weight: torch.Tensor) -> None:
    weight.grad = None


def _measure(settings: RunSettings, policy: Any, pictures: int, memory: bool) -> Passes:
    conditioning, weights = conditioning_shapes(policy, pictures), trainable(policy.network).values()
    calls, gpu = Calls(policy, conditioning), settings.policy.device != "cpu"
    taken = partial(measure_pass, gpu=gpu, memory=memory)
    leaf: dict[str, int] = {}
    shapes: list[LeafShape] = []

    def decode(leaves: int) -> Decoded:
        decoded = calls.decode(leaves)
        leaf.update((name, math.prod(tensor.shape[1:])) for name, tensor in decoded.tensors().items())
        shapes.append(LeafShape.of(decoded))
        return decoded

    decoding = taken(decode)
    rewards = reward_shapes(settings.rewards, shapes[0], gpu=gpu)

    return Passes(
        parameters=sum(p.numel() for p in policy.network.parameters()),
        trained=sum(p.numel() for p in weights),
        forward=taken(calls.forward),
        train=taken(calls.train),
        keep=taken(calls.velocity, held=lambda meter: meter.bytes) if settings.learner.keep_graph else None,
        decode=decoding,
        score={name: model and taken(torch.no_grad()(model.call)) for name, model in rewards.items()},
        rewards={name: model for name, model in rewards.items() if model},
        around=sum(weight_bytes(decoder) for decoder in policy.decoders),
        encoders=sum(weight_bytes(encoder) for encoder in policy.encoders.values()),
        state=math.prod(policy.latent_shape),
        leaf=leaf,
        conditioning=sum(value.nbytes for value in conditioning.values()),
    )


def measure_pass(
    call: Callable[[int], Any],
    gpu: bool,
    held: Callable[[Meter], int] = lambda meter: meter.peak,
    memory: bool = True,
) -> Pass:
    """What a call on shapes takes by its number of rows, on a `gpu` or a CPU: from two calls, or without `memory` one.

    They have two rows and three: of a single one some tensors are contiguous that of more have to be copied.
    """
    flops, sizes = [], []
    for rows in (2, 3) if memory else (1,):
        with metered(gpu=gpu) as meter:
            result = call(rows)
            sizes.append(held(meter))
        flops.append(meter.flops / rows)
        del result
    each = sizes[1] - sizes[0] if memory else math.nan
    return Pass(flops[0], sizes[0] - 2 * each, each)
