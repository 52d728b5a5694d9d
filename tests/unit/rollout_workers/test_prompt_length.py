"""How long prompts may be, and which are cut."""

from pathlib import Path

import pytest
import torch
from branchgrpo.cluster.commands.check import check
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.train import train
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.prompt import pictures_of
from branchgrpo.proto.settings import PolicySettings
from branchgrpo.rollout_workers.policies.load import find_policy, load_policy
from families import FAMILIES, saved, with_pictures
from rich.console import Console
from support import Settings

LIMITS = {"FLUX.1-dev": 512, "FLUX.2 klein": 512, "SD3.5": 512, "Wan 2.1": 512, "Z-Image": 512}
LIMITS |= {"Qwen-Image": 1024, "Qwen-Image 2.1": 8191}


@pytest.mark.parametrize("family", LIMITS)
def test_a_prompt_may_be_as_long_as_diffusers_pipeline_takes_it(
    family: str, run_settings: Settings, tmp_path: Path
) -> None:
    folder = saved(family, tmp_path / "pipeline")
    height, width = FAMILIES[family].size
    changes = {"policy.pretrained": str(folder), "policy.frames": FAMILIES[family].frames}
    changes |= {"policy.height": height, "policy.width": width}
    fits, not_any_more = (
        run_settings({**changes, "policy.max_sequence_length": length})
        for length in (LIMITS[family], LIMITS[family] + 1)
    )
    find_policy(fits.policy)
    assert not check(fits).missing
    with pytest.raises(InputError, match=rf"max_sequence_length is {LIMITS[family] + 1}; a \w+ takes at most"):
        find_policy(not_any_more.policy)
    (told,) = check(not_any_more).missing
    assert told.endswith(f"takes at most {LIMITS[family]}")


@pytest.mark.parametrize(
    "family",
    [
        name
        for name in FAMILIES
        if name not in ("FLUX.1-schnell", "SD2.1 (v)", "SDXL (v)") and not name.endswith((" pictures", "B, picture"))
    ],
)
def test_prompts_are_cut_where_more_of_them_changes_nothing(family: str, tmp_path: Path) -> None:
    most = {"Qwen-Image": 210, "Qwen-Image 2.1": 75, "Qwen-Image-Edit": 355, "Qwen-Image-Edit Plus": 380}.get(
        family, 40
    )  # of templates that are long in characters
    settings = PolicySettings(
        pretrained=str(saved(family, tmp_path / "pipeline")),
        height=FAMILIES[family].size[0],
        width=FAMILIES[family].size[0],
        frames=FAMILIES[family].frames,
        guidance_scale=1.0,
        max_sequence_length=most,
        precision="float32",
        device="cpu",
    )
    policy = load_policy(settings)
    texts = ["1234567890"[: i % 10] + "1234567890" * (i // 10) for i in range(1, 60)]
    prompts = with_pictures(texts, FAMILIES[family].pictures)
    cut = policy.cut_prompts(prompts)
    assert 0 < len(cut) < len(prompts)
    assert cut == list(prompts[-len(cut) :]), "longer ones are cut as well"
    without = load_policy(settings, network_only=True)
    assert without.cut_prompts(prompts) == cut
    shortest = len(prompts) - len(cut)
    # Around the first that is cut, around the limit in characters, and the longest.
    for prompt in (*prompts[max(0, shortest - 3) : shortest + 3], *prompts[most - 1 : most + 1], prompts[-1]):
        if "Qwen" in family:
            shown = {"image": [own.fitted(32, 32) for own in pictures_of(prompt)]} if "Edit" in family else {}
            limit = {} if "2.1" in family else {"max_sequence_length": 1024}
            embeds, *_ = policy.pipeline.encode_prompt(str(prompt), **limit, **shown)
            assert (embeds.shape[1] > most) == (prompt in cut)
            continue
        name = "clip_embeds" if family.startswith("LTX-2") else "prompt_embeds"
        one, other = (policy.embed(text)[name] for text in (prompt, f"{prompt}7"))
        if family.startswith(("FLUX.2", "Hunyuan", "Z-Image")):  # the end of the chat is cut first
            assert not torch.equal(one, other) or prompt in cut
            assert len(prompt) < most or (torch.equal(one, other) and prompt in cut)
        else:
            # With one character more it is cut, or was before.
            assert torch.equal(one, other) == (f"{prompt}7" in policy.cut_prompts([f"{prompt}7"]))


def test_check_tells_of_prompts_that_are_cut(run_settings: Settings) -> None:
    assert not check(run_settings({"policy.max_sequence_length": 4})).advice
    (told,) = check(run_settings({"policy.max_sequence_length": 3})).advice
    assert told == (
        "14 prompts are longer than the model takes and will be cut (policy.max_sequence_length is 3), such as: 000"
    )


def test_a_run_tells_of_them_at_its_start(run_settings: Settings) -> None:
    settings = run_settings({"policy.max_sequence_length": 3, "iterations": 1})
    told = (train(settings, RunDisplay(Console(quiet=True))) / "log.txt").read_text()
    assert told.count("14 prompts are longer than the model takes and will be cut") == 1
