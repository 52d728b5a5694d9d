"""What a run computes, counted on shapes."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from branchgrpo.benchmarks.support.model_sizes import flux_dev
from branchgrpo.cluster.plan.flops import count_flops, count_work
from branchgrpo.cluster.plan.meter import metered
from branchgrpo.cluster.plan.reward_shapes import LeafShape, reward_shapes
from branchgrpo.cluster.plan.shapes import conditioning_shapes, needed_prompt, pictures_per_prompt, policy_shapes
from branchgrpo.proto import pictures
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.prompt import Prompt
from branchgrpo.proto.prompts import write_lines
from branchgrpo.proto.recipe import load_recipe
from branchgrpo.proto.settings import RewardSettings, RunSettings
from branchgrpo.rollout_workers.policies.base import collate
from branchgrpo.rollout_workers.policies.load import load_policy
from families import FAMILIES, with_pictures
from plain_diffusers import policy_of
from support import RECIPES, Settings
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

LONG = "9 " * 200
"""More than is encoded of a prompt."""


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    """The paper's recipe, over the published configurations alone."""
    folder = flux_dev(tmp_path_factory.mktemp("flux"))
    return load_recipe(RECIPES / "flux_hps_branch.yaml", [f"policy.pretrained={folder}"])


def test_flux_takes_37_tflop_a_row(flux: RunSettings) -> None:
    """Also with checkpoints, of which the backward pass computes all blocks again, and takes twice a forward pass."""
    work = count_work(flux)
    assert round(work.forward_row / 1e12, 2) == 37.28
    assert round(work.decode_leaf / 1e12, 2) == 5.04
    assert work.trained_row / work.forward_row == pytest.approx(4, rel=0.02)
    assert work.score_leaf["hps"] == pytest.approx(2 * 632e6 * 257, rel=0.05)  # parameters times tokens


@pytest.mark.parametrize(
    "family",
    [
        *("FLUX.1 Kontext", "FLUX.2 klein, pictures", "SDXL", "Wan 2.1, picture", "Wan 2.2 14B", "Z-Image"),
        *("Qwen-Image 2.1", "Qwen-Image 2.1, pictures", "Qwen-Image-Edit"),
    ],
)
def test_what_is_counted_is_what_the_policy_computes(family: str, run_settings: Settings, tmp_path: Path) -> None:
    given, count = policy_of(family, tmp_path / "pipeline"), FAMILIES[family].pictures
    (prompt,) = with_pictures((LONG,), count)
    settings = run_settings(
        {
            "policy": given.model_dump(),
            "prompts.picture_column": "image" if count else None,
            "prompts.train": str(_written(prompt, tmp_path)),
        }
    )
    policy, shapes = load_policy(given), policy_shapes(settings)
    assert pictures_per_prompt(settings.prompts) == count
    conditioning, work = collate([policy.encode(prompt)]), count_work(settings)
    for name, value in collate([conditioning_shapes(shapes, count)]).items():
        assert (value.shape, value.dtype) == (conditioning[name].shape, conditioning[name].dtype)
    state = torch.zeros(1, *policy.latent_shape)
    forward = _counted(lambda: policy.velocity(state, torch.tensor([0.5]), conditioning))
    assert work.forward_row == pytest.approx(forward, rel=0.003)  # the negative prompt is short
    assert work.decode_leaf == _counted(lambda: policy.decode(state))


def _written(prompt: Prompt, folder: Path) -> Path:
    """A file with the prompt, beside its pictures."""
    (folder / pictures.FOLDER).mkdir()
    for picture in prompt.pictures:
        (folder / pictures.FOLDER / picture.name).write_bytes(picture.content())
    path = folder / "prompts.jsonl"
    path.write_text(write_lines([prompt], picture_column="image" if prompt.pictures else None))
    return path


def test_pictures_that_cannot_be_read_yet_are_taken_for_one(run_settings: Settings) -> None:
    settings = run_settings({"prompts.train": "later.jsonl", "prompts.picture_column": "image"})
    assert pictures_per_prompt(settings.prompts) == 1


@pytest.mark.parametrize(
    ("family", "given", "expected"),
    [("FLUX.1 Kontext", 3, 1), ("FLUX.1 Kontext", 0, 1), ("FLUX.2 klein, pictures", 9, 4)],
)
def test_prompts_have_what_a_model_takes(family: str, given: int, expected: int, tmp_path: Path) -> None:
    assert len(needed_prompt(load_policy(policy_of(family, tmp_path)), "9", given).pictures) == expected


def test_a_mask_of_all_pairs_is_never_made() -> None:
    """A terabyte, of a small mask that stays real."""
    with metered():
        mask = torch.ones(1, 1, 1, 1_000_000, dtype=torch.bool)
        pairs = mask.repeat(1, 1, 1_000_000, 1)
    assert not mask.is_meta
    assert pairs.is_meta
    assert pairs.shape == (1, 1, 1_000_000, 1_000_000)


def _counted(call: Any) -> float:
    """FLOPs of real tensors, with attention as two matrix products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_adapters_have_no_gradient_of_other_weights(run_settings: Settings) -> None:
    full, lora, checkpointed = (
        count_work(run_settings(changes)).trained_row
        for changes in ({}, {"learner.lora": {"rank": 1}}, {"learner.gradient_checkpointing": True})
    )
    forward = count_work(run_settings()).forward_row
    assert full == pytest.approx(3 * forward, rel=0.05)
    assert lora == pytest.approx(2 * forward, rel=0.15)
    assert checkpointed == pytest.approx(4 * forward, rel=0.1)


def test_kept_graphs_spare_a_pass_and_a_reference_takes_one(run_settings: Settings) -> None:
    one = {"learner.updates_per_iteration": 1}
    plain = count_work(run_settings(one))
    kept, with_kl = (
        count_work(run_settings({**one, name: value})).trained_row
        for name, value in (("learner.keep_graph", True), ("learner.kl_weight", 1.0))
    )
    assert plain.trained_row - kept == with_kl - plain.trained_row == plain.forward_row


def test_only_torch_models_of_known_shape_are_counted(run_settings: Settings) -> None:
    rewards = {
        "ocr": {},
        "pick_score": {},
        "aesthetic": {},
        "image_reward": {},
        "far": {"url": "http://far"},
    }
    scores = count_work(run_settings({"rewards": rewards})).score_leaf
    assert scores["ocr"] is scores["far"] is None
    assert scores["pick_score"] == pytest.approx(2 * 632e6 * 257, rel=0.05)
    assert scores["aesthetic"] == pytest.approx(2 * 304e6 * 257, rel=0.05)
    assert scores["image_reward"] is not None
    assert scores["image_reward"] > 2 * 304e6 * 197


def test_models_that_chat_or_listen_are_counted() -> None:
    """By their sizes: two operations for each parameter and token, of the text and of the picture; and per leaf."""
    leaf = LeafShape(height=384, width=640, frames=73, frame_rate=24.0, seconds=25.0)
    names = ("hps_v3", "edit_reward", "video_align", "video_align_motion", "clap")
    shapes = reward_shapes({name: RewardSettings() for name in names}, leaf, gpu=True)
    models = {name: model for name, model in shapes.items() if model}
    flops = {name: count_flops(partial(torch.no_grad()(model.call), 1)) for name, model in models.items()}

    def layers(hidden: int, mlp: int, keys: int) -> float:
        return 28 * (2 * hidden**2 + 2 * hidden * keys + 3 * hidden * mlp)

    eyes = 32 * (4 * 1280**2 + 2 * 1280 * 5120)
    question, seven, two = 450, layers(3584, 18944, 512), layers(1536, 8960, 256)
    assert flops["hps_v3"] == pytest.approx(2 * (seven * (question + 256) + eyes * 1024), rel=0.1)
    assert flops["edit_reward"] == pytest.approx(2 * 2 * (seven * (question + 512) + eyes * 2048), rel=0.1)
    # Three seconds at two frames per second, of which it sees two at a time.
    assert flops["video_align"] == pytest.approx(2 * (two * (question + 3 * 256) + eyes * 3 * 1024), rel=0.25)
    assert flops["video_align_motion"] == flops["video_align"]
    assert flops["clap"] == pytest.approx(2 * 5.8e9, rel=0.2)  # as published of HTS-AT
    assert {name: model.each for name, model in models.items()} == {
        "hps_v3": 73,
        "edit_reward": 73,
        "video_align": 1,
        "video_align_motion": 1,
        "clap": 3,
    }
    parameters = {name: model.weights / 2 for name, model in models.items()}
    assert parameters["hps_v3"] == pytest.approx(seven + eyes + 152064 * 3584, rel=0.02)
    assert parameters["video_align"] == pytest.approx(two + eyes + 151936 * 1536, rel=0.03)
    assert models["clap"].weights == pytest.approx(4 * 153e6, rel=0.02)


def test_a_policy_over_no_pipeline_is_refused(run_settings: Settings) -> None:
    changes = {"policy.adapter": "branchgrpo.benchmarks.support.gaussian:GaussianPolicy"}
    with pytest.raises(InputError, match="policy.adapter is"):
        count_work(run_settings(changes))
