"""Each family of models against plain diffusers: what is drawn, with which guidance, and by which transitions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from branchgrpo.learner.advantages import edge_weights
from branchgrpo.learner.credit import Credit
from branchgrpo.learner.rows import micro_batches, pick_rows
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.prompt import Prompt, pictures_of
from branchgrpo.proto.schedule import ode_schedule, tree_schedule
from branchgrpo.proto.settings import PolicySettings, RolloutSettings
from branchgrpo.proto.tree import SampledPart, Task, Tree
from branchgrpo.rollout_workers.kernels import CoefficientTable
from branchgrpo.rollout_workers.policies.decoded import Decoded
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.policies.pipeline import PipelinePolicy
from branchgrpo.rollout_workers.worker import RolloutWorker
from families import FAMILIES
from gradients import edge_logprobs
from plain_diffusers import STEPS, all_of_theirs, plain, policy_of, prompts_of, starts

SHIFTED = (
    *("Chroma", "FLUX.1-dev", "FLUX.2 klein", "HunyuanVideo 1.5", "LTX-2"),
    *("Qwen-Image", "Qwen-Image 2.1", "SD3.5", "Wan 2.1", "Z-Image"),
)
"""A family of each class that lays noise levels, and shifts them."""


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def settings(family: str, tmp_path_factory: pytest.TempPathFactory) -> PolicySettings:
    return policy_of(family, tmp_path_factory.mktemp("family") / "pipeline")


@pytest.fixture(scope="module")
def prompts(family: str) -> tuple[str, ...]:
    return prompts_of(family)


@pytest.fixture(scope="module")
def pipeline(settings: PolicySettings) -> Any:
    return plain(settings.pretrained)


@pytest.fixture(scope="module")
def policy(settings: PolicySettings) -> PipelinePolicy:
    return cast(PipelinePolicy, load_policy(settings))


def task_of(prompts: tuple[str, ...]) -> Task:
    return Task(iteration=0, trees=(0, 1), prompts=prompts, schedule=ode_schedule(STEPS), seed=5)


def assert_drawn_alike(
    policy: PipelinePolicy,
    parts: Sequence[SampledPart],
    pipeline: Any,
    settings: PolicySettings,
    prompts: tuple[str, ...],
) -> None:
    """The leaves of parts decode to what plain diffusers draws with the settings."""
    theirs = all_of_theirs(pipeline, settings, starts(policy, 5), prompts, policy.picture_size)
    decoded = Decoded.of(policy.decode(torch.stack([part.latents[-1] for part in parts])))
    assert theirs.keys() == decoded.tensors().keys()
    for name, ours in decoded.tensors().items():
        assert theirs[name].std() > 0.01
        np.testing.assert_allclose(ours, theirs[name], atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"guidance_scale": 0.0}, {"shift": 2.0}, {"guidance_scale_2": 2.0}],
    ids=["guided", "scale 0", "shift", "second scale"],
)
def test_ode_equals_plain_diffusers(
    family: str,
    settings: PolicySettings,
    policy: PipelinePolicy,
    prompts: tuple[str, ...],
    pipeline: Any,
    changes: dict[str, Any],
) -> None:
    settings = settings.model_copy(update=changes)
    if "shift" in changes and family not in SHIFTED:
        pytest.skip("its noise levels are not shifted, or as others'")
    if "guidance_scale_2" in changes and not {"transformer_2", "audio_vae"} & {
        name for name, part in pipeline.components.items() if part
    }:
        with pytest.raises(InputError, match="policy.guidance_scale_2 is 2.0, and this model has one network"):
            load_policy(settings)
        return
    if family.startswith("HunyuanVideo") and settings.guidance_scale == 0:
        pytest.skip("refused: test_guidance_scales.py")
    if changes:
        policy = cast(PipelinePolicy, load_policy(settings))
    task = task_of(prompts)
    parts = list(RolloutWorker(policy, RolloutSettings()).sample(task))
    assert_drawn_alike(policy, parts, pipeline, settings, prompts)
    if pictures_of(prompts[0]) and not changes:  # the same texts with each other's pictures
        pairs = zip(prompts, prompts[::-1], strict=True)
        swapped = tuple(Prompt(own, pictures=pictures_of(other)) for own, other in pairs)
        other = list(RolloutWorker(policy, RolloutSettings()).sample(replace(task, prompts=swapped)))
        assert not torch.allclose(other[0].latents[-1], parts[0].latents[-1], atol=1e-4)
    if policy.guided and not changes:
        without = settings.model_copy(update={"negative_prompt": "0"})
        other = list(RolloutWorker(load_policy(without), RolloutSettings()).sample(task))
        assert not torch.equal(other[0].latents[-1], parts[0].latents[-1])


def test_noise_levels_of_the_recipe_are_taken_as_they_are(
    family: str, settings: PolicySettings, prompts: tuple[str, ...], pipeline: Any
) -> None:
    """Where diffusers' call takes some; elsewhere they are refused before anything is loaded."""
    settings = settings.model_copy(update={"sigmas": [1.0, 0.99, 0.9, 0.7, 0.4, 0.15]})
    if family in ("SDXL", "Stable Audio", "Wan 2.1"):
        with pytest.raises(InputError, match=r"policy.sigmas is \[1.0, .*; \w+ takes none: use null"):
            load_policy(settings)
        return
    if family not in ("Chroma", "FLUX.1-dev", "LTX-2.5", "Qwen-Image", "Z-Image"):
        pytest.skip("as others")
    policy = cast(PipelinePolicy, load_policy(settings))
    assert policy.sigmas(STEPS) == pytest.approx([*(settings.sigmas or ()), 0.0])
    with pytest.raises(InputError, match="is 4; policy.sigmas has 6 noise levels: it must be 6"):
        policy.sigmas(4)
    assert_drawn_alike(
        policy, list(RolloutWorker(policy, RolloutSettings()).sample(task_of(prompts))), pipeline, settings, prompts
    )


def test_a_task_is_sampled_with_its_own_guidance(
    settings: PolicySettings, policy: PipelinePolicy, prompts: tuple[str, ...], pipeline: Any
) -> None:
    """From guidance to none too, which takes another conditioning; and the policy stays as it is."""
    worker, task = RolloutWorker(policy, RolloutSettings()), task_of(prompts)
    before = next(worker.sample(task)).latents[-1]
    for scale in (1.0, 2.5):
        parts = list(worker.sample(replace(task, guidance_scale=scale)))
        own: dict[str, float | None] = {"guidance_scale": scale}
        if scale <= 1:  # which leaves a second one without effect
            own["guidance_scale_2"] = None
        assert_drawn_alike(policy, parts, pipeline, settings.model_copy(update=own), prompts)
        if policy.guided:
            assert not torch.equal(parts[0].latents[-1], before)
    assert torch.equal(before, next(worker.sample(task)).latents[-1])


def test_unchanged_weights_give_ratio_one(
    policy: PipelinePolicy, prompts: tuple[str, ...], sample: Callable[..., list[Tree]]
) -> None:
    for kernel in ("dance", "ddim") if hasattr(policy.pipeline, "unet") else ("dance", "flow"):
        schedule = tree_schedule(STEPS, kernel=kernel, eta=0.5, splits={0: 2, 2: 3})
        trees = sample(policy, schedule, rollout=RolloutSettings(max_batch_rows=4), prompts=prompts)
        transitions = CoefficientTable.of(schedule, policy.sigmas(STEPS))
        everything = [Credit(np.ones(schedule.nodes), edge_weights(schedule, "edge"))] * len(trees)
        for batch in micro_batches(pick_rows(trees, everything), trees, everything, rows=17):
            with torch.no_grad():
                logprobs = edge_logprobs(policy, transitions, batch)
            assert (logprobs - batch.logprobs).abs().max() < 1e-5
