"""`branchgrpo check`: what a recipe needs, and what is missing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from branchgrpo.cluster.check import check
from branchgrpo.proto.recipe import load_recipe
from branchgrpo.proto.settings import RunSettings
from branchgrpo.rollout_workers.policies.base import trainable
from branchgrpo.rollout_workers.policies.load import load_policy
from typer.testing import CliRunner

RECIPES = Path(__file__).parents[2] / "recipes"
REAL = ["flux_hps_branch", "flux_hps_mix", "flux_lora_24gb", "sd15_aesthetic", "sd35_pickscore", "wan21_video"]


@pytest.mark.parametrize("name", REAL)
def test_shipped_recipes_lack_their_files_alone(name: str) -> None:
    settings = load_recipe(RECIPES / f"{name}.yaml")
    found = check(settings)
    assert found.counts["leaves"][0] == settings.schedule.build().leaves
    assert any("policy.pretrained is 'models/" in problem for problem in found.missing)
    assert any("prompts.train is" in problem for problem in found.missing)
    own = {f"rewards.{reward}.pretrained" for reward, given in settings.rewards.items() if given.pretrained}
    assert all(any(key in problem for problem in found.missing) for key in own)


def test_the_paper_s_recipe_has_the_paper_s_tree() -> None:
    counts = check(load_recipe(RECIPES / "flux_hps_branch.yaml")).counts
    assert [counts[name][0] for name in ("leaves", "forward passes of the rollout", "rows of the learner")] == [
        16,
        203,
        187,
    ]


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_parameters_are_those_of_the_loaded_policy(
    run_settings: Callable[..., RunSettings], lora: dict[str, int] | None
) -> None:
    settings = run_settings({"learner.lora": lora})
    found, policy = check(settings), load_policy(settings.policy)
    everything = sum(p.numel() for p in policy.network.parameters())
    if settings.learner.lora:
        policy.add_lora(settings.learner.lora)
    trained = sum(p.numel() for p in trainable(policy.network).values())
    assert found.parameters == {"all": everything, "trained": trained}
    assert not found.missing
    assert found.prompts == {"to train on": 14, "held out": 3}
    vae = sum(file.stat().st_size for file in Path(settings.policy.pretrained, "vae").glob("*.safetensors"))
    # float32 weights, gradients and AdamW's two moments
    assert found.memory == {"1 x samples and learns": 4 * everything + 4 * trained + 8 * trained + vae}


def test_missing_weights_of_a_part_are_named(run_settings: Callable[..., RunSettings], tmp_path: Path) -> None:
    import shutil

    settings = run_settings()
    folder = tmp_path / "pipeline"
    shutil.copytree(settings.policy.pretrained, folder)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(folder / "text_encoder_2")
    broken = settings.model_copy(update={"policy": settings.policy.model_copy(update={"pretrained": str(folder)})})
    assert sorted(check(broken).missing) == [
        f"{folder}/text_encoder_2, a T5EncoderModel",
        f"{folder}/vae/*.safetensors, the weights of a AutoencoderKL",
    ]


def test_the_command_tells_and_fails_where_something_is_missing() -> None:
    from branchgrpo.cluster.cli import app

    runner = CliRunner()
    fine = runner.invoke(app, ["check", str(RECIPES / "glyphs.yaml")])
    assert fine.exit_code == 0, fine.output
    for told in ("forward passes", "1.31 million parameters", "850 prompts to train on, 150 prompts held out"):
        assert told in fine.output
    missing = runner.invoke(app, ["check", str(RECIPES / "wan21_video.yaml")])
    assert missing.exit_code == 1
    assert "policy.pretrained is 'models/Wan2.1" in missing.output
