"""What a trained row of FLUX.1-dev holds at its published size, from the plan and from the tensors of its blocks."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from branchgrpo.cluster.plan.meter import metered
from branchgrpo.cluster.plan.passes import Calls, measure_pass
from branchgrpo.cluster.plan.shapes import conditioning_shapes, policy_shapes
from branchgrpo.proto.recipe import load_recipe
from diffusers import FluxTransformer2DModel
from published_models import without_weights
from support import RECIPES

TEXT, PICTURE = 512, (720 // 16) ** 2
"""Tokens of a row at 720 x 720."""
HEADS, WIDTH, DOUBLE, SINGLE = 24, 3072, 19, 38
STATE = (TEXT + PICTURE) * WIDTH * 2
"""Bytes of what goes from block to block, in bfloat16."""
IN_DOUBLE = 22
"""States that a double block keeps: input, its norm and modulation (3), queries and keys before their norms (2),
queries, keys and values (3), attention and its projection (2), then input, norm and modulation (3), four each before
and after GELU (8), and the feed-forward part's result (1)."""
IN_SINGLE = 19
"""States that a single block keeps: the first ones of a double block (8), attention (1), four before GELU, attention
and the four after it as one (5), and their projection (1)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_weights("FLUX.1-dev", tmp_path_factory.mktemp("model") / "FLUX.1-dev")


@lru_cache
def calls(folder: Path, *, lora: bool, checkpoints: bool) -> Calls:
    adapted = ["learner.lora={rank: 32, alpha: 64}"] * lora
    own = [f"policy.pretrained={folder}", f"learner.gradient_checkpointing={str(checkpoints).lower()}"]
    policy = policy_shapes(load_recipe(RECIPES / "flux_hps_branch.yaml", [*own, *adapted]))
    return Calls(policy, conditioning_shapes(policy))


@pytest.mark.parametrize(
    ("lora", "checkpoints", "gigabytes"),
    [(False, False, 18.24), (False, True, 1.284), (True, False, 11.41), (True, True, 1.249)],
)
def test_a_trained_row_takes_what_is_known(lora: bool, checkpoints: bool, gigabytes: float, folder: Path) -> None:
    """With checkpoints: a state for each block, the graph of one, and gradients of a state or two.

    From the second row on: of one alone, tensors are contiguous that of more have to be copied.
    """
    taken = measure_pass(calls(folder, lora=lora, checkpoints=checkpoints).train, gpu=True)
    assert taken.each / 1e9 == pytest.approx(gigabytes, rel=0.005)


@pytest.mark.parametrize(
    ("checkpoints", "states"), [(False, IN_DOUBLE * DOUBLE + IN_SINGLE * SINGLE), (True, DOUBLE + SINGLE)]
)
def test_a_graph_keeps_the_tensors_of_its_blocks(checkpoints: bool, states: int, folder: Path) -> None:
    """Beside few that are kept before the first block and after the last."""
    own = calls(folder, lora=False, checkpoints=checkpoints)
    with metered(gpu=True) as meter:
        kept = own.velocity(1)
        assert meter.bytes == pytest.approx(states * STATE, rel=0.01, abs=6 * STATE)
    del kept


def test_without_fused_kernels_it_would_be_three_times_as_much() -> None:
    """As the meta device takes a network by itself: attention and RMS norms step by step, in float32."""
    with torch.device("meta"):
        network: Any = FluxTransformer2DModel(guidance_embeds=True).to(torch.bfloat16)
        half = {"dtype": torch.bfloat16}
        given = {
            "hidden_states": torch.empty(1, PICTURE, 64, **half),
            "encoder_hidden_states": torch.empty(1, TEXT, 4096, **half),
            "pooled_projections": torch.empty(1, 768, **half),
            "timestep": torch.empty(1, **half),
            "guidance": torch.empty(1, **half),
            "img_ids": torch.empty(PICTURE, 3),
            "txt_ids": torch.empty(TEXT, 3),
        }
    weights = {id(weight.untyped_storage()) for weight in network.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved[id(tensor.untyped_storage())] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        network(**given)
    kept = sum(storage.nbytes() for key, storage in saved.items() if key not in weights)
    assert kept / 1e9 == pytest.approx(60.5, rel=0.005)
    scores = (DOUBLE + SINGLE) * HEADS * (TEXT + PICTURE) ** 2 * 4
    assert scores / 1e9 == pytest.approx(35.2, rel=0.005)
