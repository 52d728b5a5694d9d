"""Calls on shapes without numbers (the meta device): their floating-point operations, and the bytes that they hold."""

import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")
STEPWISE = F.scaled_dot_product_attention
"""On the meta device it is one step after the other."""
MAX_REAL_NUMBERS = 2**20
"""Maximum of the numbers in a tensor that stays real."""
BLOCK = 16
"""oneDNN's copies have channels in blocks of so many, on a CPU with AVX-512. What has fewer goes in as it is."""
aten: Any = torch.ops.aten
KEEP_LAYOUT = aten.convolution.default, aten.pixel_shuffle.default
"""Calls that leave channels innermost on a CPU, but not on the meta device."""
BY_MASK = aten.index.Tensor, aten.index_put_.default
"""Calls that look at the numbers of a mask."""


class Meter(TorchDispatchMode):
    """Counts what is done with shapes while it is active.

    What was computed from a shape is a shape, also if real tensors took part. Small tensors that decide about control
    flow (noise levels, masks, tokens) can so stay real: what depends on their numbers is as in a run.
    """

    def __init__(self, *, gpu: bool) -> None:
        super().__init__()
        self._gpu = gpu
        self.flops = 0.0
        """A multiplication with an addition counts as two."""
        self.bytes = 0
        """Bytes of the computed shapes that are still held."""
        self.peak = 0
        """The maximum of `bytes`."""
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._given: dict[int, torch.UntypedStorage] = {}
        """What was there before, such as parameters."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        shapes = [tensor for tensor in tensors if tensor.is_meta]
        for shape in shapes:
            storage = shape.untyped_storage()
            if id(storage) not in self._held:
                self._given[id(storage)] = storage
        if shapes:
            if func is aten._local_scalar_dense.default:  # whether a mask hides nothing: prompts are whole
                return True
            if len(shapes) < len(tensors) and func not in BY_MASK:
                args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(META), (args, kwargs))
            if kwargs.get("device") is not None:
                kwargs = {**kwargs, "device": META}
        elif func is aten._to_copy.default and tensors and kwargs.get("device") == META:
            kwargs = {**kwargs, "device": tensors[0].device}  # what is real stays so beside shapes
        result = _result(func, args, kwargs)
        if func in KEEP_LAYOUT and not self._gpu and _channels_last(args[0]):
            result = _with_channels_last(result)
        if count := flop_registry.get(func.overloadpacket):
            self.flops += count(*args, **kwargs, out_val=result)
        for tensor in _tensors(result):
            if tensor.is_meta:
                self._hold(tensor.untyped_storage())
        if func is aten.convolution.default:
            self.peak = max(self.peak, self.bytes + self._copied(args[0], args[1], result))
        return result

    def _copied(self, given: torch.Tensor, weight: torch.Tensor, result: torch.Tensor) -> int:
        """Bytes of the copies that a convolution works on.

        cuDNN makes them of what goes in and comes out. oneDNN makes them of what goes in, of the weights, and of what
        comes out, from which the result is made once the others are gone. Of kernels of one pixel it makes none, and
        where channels are innermost those of the weights alone.
        """
        if self._gpu:
            return given.nbytes + result.nbytes
        if math.prod(weight.shape[2:]) == 1:
            return 0
        if _channels_last(given):
            return 2 * weight.nbytes
        source = _blocked(given) if given.shape[1] >= BLOCK else 0
        target = _blocked(result)
        return max(source + weight.nbytes + target - result.nbytes, target)

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._held or key in self._given:
            return

        def release(_: object) -> None:
            del self._held[key]
            self.bytes -= size

        self._held[key] = weakref.ref(storage, release)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def _channels_last(tensor: torch.Tensor) -> bool:
    """Whether pictures have their channels innermost, by PyTorch's rule: of one picture the strides must say so too."""
    return tensor.ndim == 4 and tensor.stride(1) == 1 and tensor.stride(0) >= tensor.stride(2) > tensor.stride(3) > 1


def _with_channels_last(shape: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(shape, memory_format=torch.channels_last)


def _blocked(tensor: torch.Tensor) -> int:
    """Bytes of a copy with whole blocks of channels."""
    channels = tensor.shape[1]
    return tensor.nbytes // channels * BLOCK * math.ceil(channels / BLOCK)


_known: dict[Any, Any] = {}
"""A call, with its arguments as they look from outside, and a result like its own. Blocks of a network repeat each
other's calls, and the meta device takes a tenth of a millisecond for one."""


def _result(func: Any, args: Any, kwargs: Any) -> Any:
    """What `func` returns: new shapes like those of an earlier call, if its arguments looked the same."""
    if (
        func is aten.repeat.default and args[0].numel() * math.prod(args[1]) > MAX_REAL_NUMBERS
    ):  # such as a mask of pairs of tokens
        args = args[0].to(META), *args[1:]
    given = _tensors((args, kwargs))
    if not given or not all(tensor.is_meta for tensor in given):
        return tree_map_only(torch.Tensor, _shape_if_large, func(*args, **kwargs))
    key = func, _look((args, kwargs))
    if key in _known:
        return _alike(_known[key])
    result = func(*args, **kwargs)
    made, before = _tensors(result), {id(tensor.untyped_storage()) for tensor in given}
    if made and before.isdisjoint(id(shape.untyped_storage()) for shape in made):  # neither a view nor in place
        _known[key] = _alike(result)
    return result


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors among arguments or results."""
    if isinstance(value, torch.Tensor):
        return [value]
    each = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for one in each for tensor in _tensors(one)]


def _look(value: Any) -> Any:
    """Arguments without identity. Numbers have their type beside them: what 2 makes of integers isn't what 2.0 does."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, dict):
        return tuple((name, _look(one)) for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_look, value))
    return type(value), value


def _alike(value: Any) -> Any:
    """A result with new shapes in place of its own."""
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
    return type(value)(map(_alike, value)) if isinstance(value, (list, tuple)) else value


def _shape_if_large(tensor: torch.Tensor) -> torch.Tensor:
    """Such as a mask of all pairs of tokens."""
    return tensor if tensor.is_meta or tensor.numel() <= MAX_REAL_NUMBERS else tensor.to(META)


@contextmanager
def metered(*, gpu: bool = True) -> Iterator[Meter]:
    """Within the block, operations on shapes are counted.

    By itself the meta device takes one step after the other where CPUs and GPUs have a fused kernel, for attention and,
    on a `gpu`, for RMS norms. A CPU's group norms and convolutions leave channels innermost, which it doesn't.
    """
    kernels: dict[str, Any] = {"scaled_dot_product_attention": _attention}
    kernels |= {"rms_norm": _rms_norm} if gpu else {"group_norm": _group_norm}
    with patch.multiple(F, **kernels), Meter(gpu=gpu) as meter:
        yield meter


def _rms_norm(
    input: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    """A layer norm holds the same: its input, and a factor for each row."""
    return F.layer_norm(input, normalized_shape, weight, None, eps or 1e-6)


def _group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    rows, channels, *sides = input.shape
    normed: torch.Tensor = aten.native_group_norm(
        input, weight, bias, rows, channels, math.prod(sides), num_groups, eps
    )[0]
    return _with_channels_last(normed) if _channels_last(input) else normed


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention that keeps no scores, unless no kernel is allowed that doesn't."""
    if not (torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()):
        return STEPWISE(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    attend = aten._scaled_dot_product_efficient_attention
    attended: torch.Tensor = attend(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
    return attended
