"""Each family of models against plain diffusers: what is drawn, what is trained, what is exported."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.cluster.run.loop import IterationReport
from branchgrpo.learner.advantages import edge_weights
from branchgrpo.learner.credit import Credit
from branchgrpo.learner.objective import edge_logprobs
from branchgrpo.learner.rows import micro_batches, pick_rows
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.schedule import ode_schedule, tree_schedule
from branchgrpo.proto.settings import PolicySettings, RolloutSettings
from branchgrpo.proto.tree import Task, Tree
from branchgrpo.rollout_workers.kernels import CoefficientTable
from branchgrpo.rollout_workers.noise import Stream, gaussian
from branchgrpo.rollout_workers.policies.base import Policy, trainable
from branchgrpo.rollout_workers.policies.load import load_policy
from branchgrpo.rollout_workers.worker import RolloutWorker
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from families import FAMILIES, saved
from support import Settings

STEPS = 6
PROMPTS = ("123", "456")
COUNTING = {"counting": {"scorer": "branchgrpo.benchmarks.support.stand_ins:counting_scorer"}}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: saved(name, tmp_path_factory.mktemp("family") / "pipeline") for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def settings(request: pytest.FixtureRequest, folders: dict[str, Path]) -> PolicySettings:
    """With guidance."""
    return PolicySettings(
        pretrained=str(folders[request.param]),
        height=16,
        width=32,
        frames=5 if "Wan" in request.param else 1,
        guidance_scale=3.0,
        negative_prompt="" if "FLUX" in request.param else "9",
        max_sequence_length=200 if "Qwen" in request.param else 6,  # whose template is long in characters
        precision="float32",
        device="cpu",
    )


def plain(folder: str) -> Any:
    """The pipeline as diffusers loads it, which wants to be told of parts that it does without."""
    index = json.loads((Path(folder) / "model_index.json").read_text())
    return DiffusionPipeline.from_pretrained(folder, **{name: None for name, v in index.items() if v == [None, None]})


def theirs(pipeline: Any, settings: PolicySettings, starts: torch.Tensor) -> np.ndarray:
    """What plain diffusers draws from the starts, in [0, 1]."""
    config, video = pipeline.scheduler.config, settings.frames > 1
    if hasattr(pipeline, "unet"):
        pipeline.scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    elif video:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=settings.shift or config.flow_shift)
    elif settings.shift:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
            config, use_dynamic_shifting=False, shift=settings.shift
        )
    flux, unet = "Flux" in type(pipeline).__name__, hasattr(pipeline, "unet")
    scale = "true_cfg_scale" if "Qwen" in type(pipeline).__name__ else "guidance_scale"
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        list(PROMPTS),
        height=settings.height,
        width=settings.width,
        num_inference_steps=STEPS,
        latents=starts,
        output_type="np",
        **{scale: settings.guidance_scale},
        **({} if flux else {"negative_prompt": [settings.negative_prompt] * len(PROMPTS)}),
        **({} if unet else {"max_sequence_length": settings.max_sequence_length}),
        **({"num_frames": settings.frames, "guidance_scale_2": settings.guidance_scale_2} if video else {}),
    )
    return np.asarray(drawn.frames if video else drawn.images)


def starts(policy: Policy, seed: int) -> torch.Tensor:
    return torch.stack([gaussian(seed, 0, i, 0, Stream.START, policy.latent_shape) for i in range(len(PROMPTS))])


@pytest.mark.parametrize(
    "changes",
    [{}, {"guidance_scale": 1.0}, {"guidance_scale": 0.0}, {"shift": 2.0}, {"guidance_scale_2": 2.0}],
    ids=["guided", "plain", "scale 0", "shift", "second scale"],
)
def test_ode_equals_plain_diffusers(settings: PolicySettings, changes: dict[str, Any]) -> None:
    settings = settings.model_copy(update=changes)
    pipeline = plain(settings.pretrained)
    if "shift" in changes and hasattr(pipeline, "unet"):
        pytest.skip("its noise levels are not shifted")
    if "guidance_scale_2" in changes and getattr(pipeline, "transformer_2", None) is None:
        with pytest.raises(InputError, match="policy.guidance_scale_2 is 2.0, and this model has one network"):
            load_policy(settings)
        return
    policy = load_policy(settings)
    task = Task(iteration=0, trees=(0, 1), prompts=PROMPTS, schedule=ode_schedule(STEPS), seed=5)
    parts = list(RolloutWorker(policy, RolloutSettings()).sample(task))
    ours = policy.decode(torch.stack([part.latents[-1] for part in parts])).numpy()
    reference = theirs(pipeline, settings, starts(policy, 5))
    assert reference.std() > 0.01
    np.testing.assert_allclose(ours, reference, atol=1e-4)
    if policy.guided:
        without = settings.model_copy(update={"negative_prompt": "0"})
        other = list(RolloutWorker(load_policy(without), RolloutSettings()).sample(task))
        assert not torch.equal(other[0].latents[-1], parts[0].latents[-1])


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_task_of_another_guidance_is_sampled_as_by_a_policy_that_has_it(
    settings: PolicySettings, scale: float
) -> None:
    """From guidance to none too, which takes another conditioning; and the policy stays as it is."""
    policy = load_policy(settings)
    worker = RolloutWorker(policy, RolloutSettings())
    task = Task(iteration=0, trees=(0, 1), prompts=PROMPTS, schedule=ode_schedule(STEPS), seed=5)
    before = next(worker.sample(task)).latents[-1]
    drawn = next(worker.sample(replace(task, guidance_scale=scale))).latents[-1]
    if scale <= 1:  # which leaves a second one without effect
        settings = settings.model_copy(update={"guidance_scale_2": None})
    other = RolloutWorker(load_policy(settings.model_copy(update={"guidance_scale": scale})), RolloutSettings())
    assert torch.equal(drawn, next(other.sample(task)).latents[-1])
    assert torch.equal(before, next(worker.sample(task)).latents[-1])
    if policy.guided:
        assert not torch.equal(drawn, before)


def test_unchanged_weights_give_ratio_one(settings: PolicySettings, sample: Callable[..., list[Tree]]) -> None:
    policy = load_policy(settings)
    for kernel in ("dance", "ddim") if hasattr(policy.pipeline, "unet") else ("dance", "flow"):
        schedule = tree_schedule(STEPS, kernel=kernel, eta=0.5, splits={0: 2, 2: 3})
        trees = sample(policy, schedule, rollout=RolloutSettings(max_batch_rows=4), prompts=PROMPTS)
        transitions = CoefficientTable.of(schedule, policy.sigmas(STEPS))
        everything = [Credit(np.ones(schedule.nodes), edge_weights(schedule, "edge"))] * len(trees)
        for batch in micro_batches(pick_rows(trees, everything), trees, everything, rows=17):
            with torch.no_grad():
                logprobs = edge_logprobs(policy, transitions, batch)
            assert (logprobs - batch.logprobs).abs().max() < 1e-5


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_bfloat16_with_recomputed_activations_has_ratio_one(
    settings: PolicySettings, lora: dict[str, int] | None, run_settings: Settings
) -> None:
    reports = _iterations(settings.model_copy(update={"precision": "bfloat16"}), lora, run_settings)
    assert [report.updates[0].logprob_abs_diff for report in reports] == [0, 0]
    assert all(report.updates[0].gradient_norm > 0 for report in reports)


def _iterations(settings: PolicySettings, lora: dict[str, int] | None, run_settings: Settings) -> list[IterationReport]:
    """Two iterations with all that saves memory in one process."""
    run = run_settings(
        {
            "policy": settings.model_dump(),
            "schedule": {"steps": 5, "splits": {0: 2, 2: 2}, "eta": 0.5},
            "rewards": COUNTING,
            "prompts.per_iteration": 2,
            "learner.updates_per_iteration": 1,
            "learner.lora": lora,
            "learner.zero_stage": 2,
            "learner.gradient_checkpointing": True,
            "learner.optimizer": {"learning_rate": 1e-3},
        }
    )
    loop = InProcessLoop(run, PROMPTS)
    return [loop.iterate(number) for number in (1, 2)]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "precision"), [("FLUX.1-dev", "bfloat16"), ("SD1.5", "float32")], indirect=["settings"]
)
def test_a_compiled_network_is_the_same_policy(
    settings: PolicySettings, precision: str, run_settings: Settings
) -> None:
    """Of blocks that repeat (FLUX) and as a whole (a UNet); without gradient in rollouts and with it in the learner."""
    eager = settings.model_copy(update={"precision": precision})
    compiled = eager.model_copy(update={"compile": True})
    expected, found = (_iterations(own, {"rank": 2}, run_settings) for own in (eager, compiled))
    bound = 1e-5 if precision == "float32" else 0.0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.updates[0].logprob_abs_diff <= bound
        assert ours.updates[0].gradient_norm == pytest.approx(theirs.updates[0].gradient_norm, rel=2e-2)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}], ids=["full", "lora"])
def test_an_update_trains_the_network_alone_and_its_export_draws_the_same(
    settings: PolicySettings, lora: dict[str, int] | None, run_settings: Settings, tmp_path: Path
) -> None:
    run = run_settings(
        {
            "policy": settings.model_dump(),
            "schedule": {"steps": STEPS, "splits": {0: 2, 2: 2}, "eta": 0.5},
            "rewards": COUNTING,
            "prompts.per_iteration": 2,
            "learner.updates_per_iteration": 1,
            "learner.lora": lora,
            "learner.optimizer": {"learning_rate": 1e-2},
        }
    )
    loop = InProcessLoop(run, PROMPTS)
    pipeline = loop.policy.pipeline
    everything = {
        f"{name}.{parameter}": value
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
        for parameter, value in part.state_dict().items()
    }
    trained = {id(p) for p in trainable(loop.policy.network).values()}
    assert trained
    before = {name: value.clone() for name, value in everything.items()}
    parameters = {id(p.data) for p in trainable(loop.policy.network).values()}
    assert parameters
    loop.iterate(1)
    changed = {name for name, value in everything.items() if not torch.equal(before[name], value)}
    assert changed
    assert all(name.split(".")[0] in loop.policy.networks for name in changed)
    if lora:
        assert all("lora" in name for name in changed)

    evaluation = loop.evaluate(PROMPTS)
    exported = loop.policy.save(tmp_path / "exported")
    loaded = plain(settings.pretrained)
    for number, name in enumerate(loop.policy._networks):
        if lora:
            second = {"load_into_transformer_2": True} if number else {}
            file = exported if exported.is_file() else sorted(exported.iterdir())[number]
            loaded.load_lora_weights(file.parent, weight_name=file.name, **second)
        else:
            folder = exported if exported.name == name else exported / name
            setattr(loaded, name, type(getattr(loaded, name)).from_pretrained(folder))
    reference = theirs(loaded, settings, starts(loop.policy, run.evaluation.seed))
    difference = np.abs(evaluation.media.astype(int) - (reference * 255).round().astype(int))
    assert difference.max() <= 1
    assert evaluation.media.std() > 2
