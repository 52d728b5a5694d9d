"""`branchgrpo export`: the trained model of a run, for diffusers and for other tools."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import safetensors.torch
import torch
from branchgrpo.cluster.commands.export import export
from branchgrpo.cluster.commands.publish import (
    CLIP,
    PICTURE,
    PLACE,
    base_model,
    model_card,
    publish,
    upload_command,
    usage,
)
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.prompt import pictures_of
from branchgrpo.rollout_workers.policies.load import EMBEDDED, load_policy
from diffusers.utils import encode_video
from families import PROCESSORS
from huggingface_hub import ModelCard
from merged_pipelines import IN_UNIT_TESTS, NOISY, assert_draws_what_evaluate_drew, trained
from PIL import Image
from plain_diffusers import plain, policy_of, prompts_of
from support import COUNTING, Settings

CARDS = (
    *("Chroma", "FLUX.1 Kontext", "FLUX.2 dev", "FLUX.2 klein", "HunyuanVideo 1.5", "LTX-2"),
    *(
        "LTX-2, picture",
        "Qwen-Image",
        "Qwen-Image 2.1",
        "Qwen-Image-Edit",
        "SD1.5",
        "SDXL",
        "SD3.5",
        "Stable Audio",
        "Wan 2.1, picture",
        "Wan 2.2 14B",
        "Z-Image",
    ),
)


@pytest.mark.parametrize("family", IN_UNIT_TESTS)
def test_a_merged_pipeline_draws_what_evaluate_drew(family: str, run_settings: Settings, tmp_path: Path) -> None:
    lora, levels = IN_UNIT_TESTS[family]
    assert_draws_what_evaluate_drew(family, lora, levels, run_settings, tmp_path)
    base, out = tmp_path / "base", tmp_path / "out"
    assert (out / "vae" / "diffusion_pytorch_model.safetensors").samefile(
        base / "vae" / "diffusion_pytorch_model.safetensors"
    )
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict().items() >= {"license": "other", "license_name": "mine"}.items()
    assert "base_model" not in card.data.to_dict()  # which must be a repository
    assert "`base`, aligned with" in card.content
    assert "| count | 0.2500 | 0.7500 |" in card.content
    assert ("sigmas=" in card.content) == ("sigmas" in levels)
    assert upload_command("mine", out) == f"hf upload mine {out} ."


@pytest.mark.parametrize("family", CARDS)
def test_the_code_on_a_model_card_draws(
    family: str, run_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def encoded(*given: Any, audio_sample_rate: int, **more: Any) -> None:
        """At ten times the small model's rate, for which there is no codec."""
        encode_video(*given, audio_sample_rate=10 * audio_sample_rate, **more)

    monkeypatch.setattr("diffusers.utils.encode_video", encoded)
    column = "image" if pictures_of(prompts_of(family)[0]) else None
    settings = run_settings(
        {
            "policy": policy_of(family, tmp_path / "base").model_dump(),
            "evaluation.steps": 3,
            "prompts.picture_column": column,
        }
    )
    policy: Any = load_policy(settings.policy, network_only=True)
    found: dict[str, Any] = {}
    Image.new("RGB", (50, 30)).save(tmp_path / PICTURE)
    code = usage(settings, policy).replace(PLACE, str(tmp_path / "base")).replace(PICTURE, str(tmp_path / PICTURE))
    assert (PICTURE in code) == bool(column)
    if policy.pipeline_class.__name__ in PROCESSORS:  # of which `plain` does without the part that needs torchvision
        code = code.replace("DiffusionPipeline.from_pretrained", "load")
        found["load"] = lambda folder, **_: plain(folder)
    exec(code, found)
    drawn = np.asarray(found["drawn"][0] if settings.policy.frames > 1 else found["drawn"])
    sound = settings.policy.seconds and (2, round(settings.policy.seconds * found["pipe"].vae.sampling_rate))
    colours = 4 if family == "Qwen-Image 2.1" else 3
    assert drawn.shape == (sound or (settings.policy.height, settings.policy.width, colours))
    assert (tmp_path / CLIP).exists() == policy.scales_sound
    if policy.scales_sound:
        with av.open(tmp_path / CLIP) as clip:
            assert clip.streams.audio[0].sample_rate == 10 * found["pipe"].vocoder.config.output_sampling_rate
            assert sum(1 for _ in clip.decode(video=0)) == settings.policy.frames
            clip.seek(0)
            assert sum(frame.samples for frame in clip.decode(audio=0)) >= found["sound"].shape[-1] > 0


@pytest.mark.parametrize("family", ["SD1.5", NOISY])
def test_a_card_names_a_scheduler_that_adds_noise(family: str, run_settings: Settings, tmp_path: Path) -> None:
    """It does if two draws from one start differ."""
    settings = run_settings({"policy": policy_of(family, tmp_path / "base").model_dump()})
    policy: Any = load_policy(settings.policy, network_only=True)
    scheduler, start = policy.pipeline.scheduler, torch.ones(1, *policy.latent_shape)
    ends = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        scheduler.set_timesteps(3)
        state = start
        for step in scheduler.timesteps:
            state = scheduler.step(torch.zeros_like(state), step, state).prev_sample
        ends.append(state)
    with RunFolder.create(settings) as folder:
        card = model_card(folder, policy, 1, ema=False)
    assert ("adds noise at every step" in card) == (not torch.equal(*ends)) == (family == NOISY)


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_a_card_names_a_scheduler_whose_steps_are_others(
    spacing: str, steps: int, run_settings: Settings, tmp_path: Path
) -> None:
    """They are if another state comes out than by DDIM's formula from each timestep to the next."""
    settings = run_settings({"policy": policy_of("SD1.5", tmp_path / "base").model_dump(), "evaluation.steps": steps})
    policy: Any = load_policy(settings.policy, network_only=True)
    scheduler = policy.pipeline.scheduler
    scheduler.register_to_config(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    theirs = ours = torch.ones(1, dtype=torch.float64)
    kept = scheduler.alphas_cumprod.double()
    following = [*kept[scheduler.timesteps[1:]], scheduler.final_alpha_cumprod]
    for timestep, later in zip(scheduler.timesteps, following, strict=True):
        noise, now = torch.cos(timestep.double()).reshape(1), kept[timestep]
        theirs = scheduler.step(noise, timestep, theirs).prev_sample
        ours = later.sqrt() * (ours - (1 - now).sqrt() * noise) / now.sqrt() + (1 - later).sqrt() * noise
    with RunFolder.create(settings) as folder:
        card = model_card(folder, policy, 1, ema=False)
    assert ("takes steps of" in card) == (not torch.allclose(theirs, ours, atol=1e-5))


@pytest.mark.parametrize(
    ("evaluated", "ema", "reason"),
    [
        ((0, 1), True, "of the running average: the run's evaluations draw with the weights themselves"),
        ((0, 2), False, "of iteration 1, which the run didn't evaluate"),
        ((1,), False, "no earlier evaluation that can be compared with that of iteration 1"),
        ((1, 2), False, "no earlier evaluation that can be compared with that of iteration 1"),
    ],
    ids=["average", "not evaluated", "alone", "the first"],
)
def test_a_card_says_why_it_has_no_rewards(
    evaluated: tuple[int, ...], ema: bool, reason: str, run_settings: Settings
) -> None:
    settings = run_settings({"policy.pretrained": "glyphs", "policy.height": 32, "policy.width": 64})
    with RunFolder.create(settings) as folder:
        for iteration in evaluated:
            folder.append("evaluations", {"iteration": iteration, "count": 0.25})
        policy: Any = load_policy(settings.policy, network_only=True)
        card = model_card(folder, policy, 1, ema=ema)
    assert f"{reason}." in card.partition("## Rewards")[2]
    assert "0.2500" not in card


def test_a_card_compares_rewards_that_both_have(run_settings: Settings) -> None:
    """One may have been added later, and dropped again."""
    settings = run_settings({"policy.pretrained": "glyphs", "policy.height": 32, "policy.width": 64})
    with RunFolder.create(settings) as folder:
        for iteration, more in enumerate(({}, {"added": 0.5}, {})):
            way = dict.fromkeys(("count", *more), "way")
            folder.append("evaluations", {"iteration": iteration, "count": 0.25, **more, "made_with": way})
        policy: Any = load_policy(settings.policy, network_only=True)
        card = model_card(folder, policy, 1, ema=False)
    assert "| count | 0.2500 | 0.2500 |" in card
    assert "added" not in card


def test_a_failed_merge_leaves_nothing(run_settings: Settings, tmp_path: Path) -> None:
    base = tmp_path / "base"
    settings = run_settings({"policy": policy_of("SD1.5", base).model_dump(), "rewards": COUNTING})
    run = trained(settings)
    (run.path / "recipe.yaml").rename(run.path / "elsewhere.yaml")
    policy: Any = load_policy(settings.policy)
    with pytest.raises(OSError, match=r"recipe\.yaml"):
        publish(run, policy, 1, tmp_path / "out", ema=False)
    assert not list(tmp_path.glob("*out*"))


def test_the_base_model_is_named_by_its_repository() -> None:
    cache = Path("/home/me/.cache/huggingface/hub/models--black-forest-labs--FLUX.1-dev/snapshots/0123")
    assert base_model(cache) == ("black-forest-labs/FLUX.1-dev", True)


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_card_calls_embedded_models_as_recipes_do(name: str, run_settings: Settings) -> None:
    settings = run_settings({"policy.pretrained": name, "policy.height": 32, "policy.width": 64})
    with RunFolder.create(settings) as folder:
        policy: Any = load_policy(settings.policy, network_only=True)
        card = model_card(folder, policy, 1, ema=False)
    assert f"`{name}`, aligned with" in card
    assert "base_model" not in card


def test_a_lora_for_comfyui_goes_by_the_runs_name(run_settings: Settings, tmp_path: Path) -> None:
    run = trained(run_settings({"rewards": COUNTING, "learner.lora": {"rank": 2, "alpha": 6}, "name": "mine"}))
    number, (file,) = export(run.path, tmp_path / "out", "newest", ema=False, form="comfyui")
    assert (number, file) == (1, tmp_path / "out" / "mine.safetensors")
    assert list((tmp_path / "out").iterdir()) == [file]
    alphas = [v for name, v in safetensors.torch.load_file(file).items() if name.endswith(".alpha")]
    assert alphas
    assert all(alpha == 6 for alpha in alphas)


@pytest.mark.parametrize(
    ("changes", "form", "message"),
    [
        ({}, "comfyui", "--format is 'comfyui', which is for LoRAs, and this run trains all weights; use diffusers"),
        (
            {"learner.lora": {"rank": 2, "target_modules": ["x_embedder"]}},
            "kohya",
            "learner.lora.target_modules has 'x_embedder', for which only --format diffusers has a name",
        ),
    ],
)
def test_a_form_that_the_model_cannot_have_is_refused(
    changes: dict[str, object], form: str, message: str, run_settings: Settings, tmp_path: Path
) -> None:
    run = trained(run_settings({"rewards": COUNTING, **changes}))
    with pytest.raises(InputError, match=message):
        export(run.path, tmp_path / "out", "newest", ema=False, form=form)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
