"""Networks of which every rank holds only its share (ZeRO 3): built in parts, and gathered layer by layer."""

from collections.abc import Callable

import torch
from accelerate import init_empty_weights

from ..proto.settings import LearnerSettings, Precision
from ..rollout_workers.policies.base import Builder, Weights
from .deepspeed_patches import same_buffers
from .deepspeed_setup import deepspeed_config, start_deepspeed


def builder(settings: LearnerSettings, precision: Precision, device: torch.device) -> Builder | None:
    """What makes the learner's networks: with ZeRO 3 `partitioned`; else, None, they are loaded whole."""
    return partitioned(settings, precision, device) if settings.zero_stage == 3 else None


def partitioned(settings: LearnerSettings, precision: Precision, device: torch.device) -> Builder:
    """Builds networks of which every rank holds its share alone, from the first parameter on (ZeRO 3).

    To be called after `join_ranks`. Rank 0 reads the weights from disk, one by one.
    """
    start_deepspeed(device)
    import deepspeed

    dtype = getattr(torch, precision)

    def build(make: Callable[[], torch.nn.Module], weights: Weights) -> torch.nn.Module:
        config = {**deepspeed_config(settings, precision), "train_batch_size": torch.distributed.get_world_size()}
        with init_empty_weights():  # of the parameters; buffers are real
            pattern = dict(make().named_modules())
        with deepspeed.zero.Init(config_dict_or_path=config):  # of the precision that is configured
            network = make()
        for name, module in network.named_modules():
            # Those of DeepSpeed are computed in the precision of the weights, in which tables of angles come out wrong.
            for own, buffer in pattern[name].named_buffers(recurse=False):
                setattr(module, own, buffer.to(device))
        parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
        reads = torch.distributed.get_rank() == 0
        for name, read in weights:
            if name in buffers:
                kept = read()
                buffers[name].data = kept.to(device, dtype if kept.is_floating_point() else kept.dtype)
                continue
            if (parameter := parameters.get(name)) is None:  # one that the class is known to ignore
                continue
            with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0), torch.no_grad():
                if reads:
                    parameter.copy_(read())
        return network

    return build


def gathering(network: torch.nn.Module, settings: LearnerSettings, precision: Precision) -> torch.nn.Module:
    """`network`, of `partitioned`, for passes without gradient: all ranks make them, and gather it layer by layer."""
    import deepspeed

    config = deepspeed_config(settings, precision)
    config["zero_optimization"].pop("offload_optimizer", None)
    with same_buffers(network):
        module, *_ = deepspeed.initialize(model=network, config=config)
    return module
