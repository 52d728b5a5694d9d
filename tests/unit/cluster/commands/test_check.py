"""`branchgrpo check`: what a recipe needs, and what is missing."""

import os
import shutil
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from branchgrpo.cluster.commands.check import check, show
from branchgrpo.cluster.plan.gpus import GPUS
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.recipe import load_recipe
from branchgrpo.rollout_workers.policies.base import trainable
from branchgrpo.rollout_workers.policies.load import load_policy
from plain_diffusers import policy_of
from rich.console import Console
from support import RECIPES, Settings
from typer.testing import CliRunner

REAL = [
    *("flux_hps_branch", "flux_hps_mix", "flux_kontext", "flux_lora_24gb"),
    *("qwen_image_ocr", "sd15_aesthetic", "sd35_pickscore", "wan21_video"),
]


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
def test_parameters_are_those_of_the_loaded_policy(run_settings: Settings, lora: dict[str, int] | None) -> None:
    settings = run_settings({"learner.lora": lora})
    found, policy = check(settings), load_policy(settings.policy)
    if settings.learner.lora:
        policy.add_lora(settings.learner.lora)
    everything = sum(p.numel() for p in policy.network.parameters())
    trained = sum(p.numel() for p in trainable(policy.network).values())
    assert found.parameters == {"all": everything, "trained": trained}
    assert not found.missing
    assert found.prompts == {"to train on": 14, "held out": 3}
    vae = sum(p.numel() for p in policy.pipeline.vae.parameters())
    encoders = sum(p.numel() for encoder in policy.encoders.values() for p in encoder.parameters())
    (memory,) = found.memory.values()
    assert (memory.weights, memory.encoders, memory.host) == (4 * (everything + vae), 4 * encoders, 0)
    assert (memory.gradients, memory.optimizer) == (4 * trained, 8 * trained)  # float32, and AdamW's two moments


def test_encoders_take_what_is_loaded_of_them(run_settings: Settings, tmp_path: Path) -> None:
    """In the run's precision, whatever that of the files, and of the variants that lie side by side one."""
    settings = run_settings()
    folder = tmp_path / "pipeline"
    shutil.copytree(settings.policy.pretrained, folder)
    for weights in list(folder.glob("text_encoder*/model.safetensors")):
        shutil.copy(weights, weights.with_name("model.fp16.safetensors"))
    changes = {"policy.pretrained": str(folder), "policy.precision": "bfloat16", "learner.zero_stage": 1}
    (whole,), (half,) = (check(run_settings(own)).memory.values() for own in ({}, changes))
    assert half.encoders == whole.encoders / 2 > 0


def test_missing_weights_of_a_part_are_named(run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings()
    folder = tmp_path / "pipeline"
    shutil.copytree(settings.policy.pretrained, folder)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(folder / "text_encoder_2")
    broken = settings.model_copy(update={"policy": settings.policy.model_copy(update={"pretrained": str(folder)})})
    assert sorted(check(broken).missing) == [
        f"{folder}/text_encoder_2, a T5EncoderModel: missing",
        f"{folder}/vae/diffusion_pytorch_model.safetensors, weights of a AutoencoderKL: missing",
    ]


def test_what_is_offloaded_lies_on_the_host(run_settings: Settings) -> None:
    whole = {"learner.zero_stage": 3, "learner.ema_decay": 0.9}
    offloaded = {**whole, "learner.offload": {"optimizer": True, "parameters": True}}
    here, there = (check(run_settings(own)).memory["1 x samples and learns"] for own in (whole, offloaded))
    assert here.held + here.host == there.held + there.host
    parameters = check(run_settings(whole)).parameters["all"]
    assert (here.host, there.host) == (4 * parameters, 4 * parameters + 4 * parameters + 8 * parameters)


def test_the_kl_term_s_reference_is_shared_as_the_network_is(run_settings: Settings) -> None:
    ranks = {"execution": "ray", "pools.learner.count": 2, "learner.zero_stage": 3}
    without, with_kl = (
        check(run_settings({**ranks, "learner.kl_weight": weight})).memory["2 x learner rank"] for weight in (0.0, 0.1)
    )
    assert with_kl.held - without.held == 4 * check(run_settings()).parameters["all"] / 2


def test_pruning_leaves_so_many_rows(run_settings: Settings) -> None:
    """Of a tree with 2 children below each of 2 nodes: 4 chains of 2 trained edges, the second of 2 of which goes."""
    counts = check(run_settings({"pruning.width": {"mode": "parent_top1"}, "learner.kl_weight": 0.1})).counts
    assert counts["trained edges"][0] == 2 + 2 + 4 * 2
    assert counts["edges that pruning keeps"][0] == 2 + 2 + 4 + 2
    assert counts["rows of the learner"][0] == 1 + 2 + 2 + 4
    assert counts["rows of the learner that it keeps"][0] == 1 + 2 + 2 + 2
    assert counts["rows of the KL term's reference"] == counts["rows of the learner that it keeps"]


NFT = {
    "learner.objective": "nft",
    "learner.nft": {"old_decay": 0.5},
    "advantage.normaliser": "group",
    "schedule": {"method": "nft", "group": 4},
}


@pytest.mark.parametrize("changes", [{"pruning.width": {"mode": "parent_top1"}, "learner.kl_weight": 0.1}, NFT])
def test_every_pass_takes_the_rows_again(changes: dict[str, Any], run_settings: Settings) -> None:
    once, thrice = (check(run_settings({**changes, "learner.passes": passes})).counts for passes in (1, 3))
    rows = [name for name in once if name.startswith("rows of")]
    assert len(rows) >= 2
    for name, (tree, iteration) in once.items():
        factor = 3 if name in rows else 1
        assert thrice[name] == (factor * tree, factor * iteration), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy.height": 17}, "policy.height is 17; this model draws multiples of 8"),
        ({"policy.frames": 5}, "policy.frames is 5; this model draws single pictures, frames 1"),
        ({"policy.seconds": 2.5}, "policy.seconds is 2.5; this model makes no sounds: leave it out"),
        ({"policy.negative_prompt": "fog"}, "policy.negative_prompt is 'fog', and this model has no classifier-free"),
        ({"learner.lora": {"rank": 2, "target_modules": ["nope"]}}, "learner.lora.target_modules is ['nope']"),
        ({"rewards": {"hps": {"pretrained": "/"}}}, "rewards.hps.pretrained is '/'; it must be HPS_v2.1_compressed.pt"),
        ({"rewards": {"far": {"url": "far:80"}}}, "rewards.far.url is 'far:80'; it must begin with http"),
        ({"rewards": {"own": {"function": "no:f"}}}, "rewards.own.function is 'no:f', which can't be imported"),
        ({"rewards": {"aesthetic": {"pretrained": __file__}}}, "rewards.aesthetic.backbone is None; it must be"),
    ],
)
def test_what_a_run_would_refuse_is_told(run_settings: Settings, changes: dict[str, Any], message: str) -> None:
    (told,) = check(run_settings(changes)).missing
    assert told.startswith(message)


@pytest.mark.parametrize(
    ("family", "scale", "evaluation", "told"),
    [
        ("SD3.5", 1.0, None, True),
        ("SD3.5", 1.0, 2.0, False),
        ("SD3.5", 1.5, None, False),
        ("Z-Image", 0.0, None, True),
        ("Z-Image", 0.5, None, False),
    ],
)
def test_a_negative_prompt_without_guidance_is_told(
    run_settings: Settings, tmp_path: Path, family: str, scale: float, evaluation: float | None, told: bool
) -> None:
    policy = policy_of(family, tmp_path / "pipeline").model_copy(update={"guidance_scale": scale})
    found = check(run_settings({"policy": policy.model_dump(), "evaluation.guidance_scale": evaluation}))
    assert found.parameters, found.missing
    expected = f"policy.negative_prompt has no effect: policy.guidance_scale is {scale:g}, which is no guidance"
    assert any(line.startswith(expected) for line in found.advice) == told
    assert any("negative_prompt" in line for line in found.advice) == told


def test_a_broken_index_is_told(run_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    (told,) = check(run_settings({"policy.pretrained": str(tmp_path / "broken")})).missing
    assert "model_index.json is broken" in told


def test_sizes_are_chosen_for_a_device_that_is_known(run_settings: Settings) -> None:
    auto = {"learner.rows_per_micro_batch": "auto", "learner.window_trees": "auto"}
    assert check(run_settings(auto)).sizes.keys() == auto.keys()
    on_gpus = run_settings({**auto, "execution": "ray", "pools.learner.gpus": 1})
    assert check(on_gpus, GPUS["h100"]).sizes.keys() == auto.keys()
    if not torch.cuda.is_available():
        assert any("which this machine hasn't: give numbers" in line for line in check(on_gpus).advice)


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_gpu_is_compared_where_a_process_reserves_one(gpus: int, run_settings: Settings) -> None:
    settings = run_settings({"execution": "ray", "pools.learner.gpus": gpus})
    with Console(width=120, file=StringIO(), record=True) as console:
        show(check(settings, GPUS["h100"]), settings, console, GPUS["h100"])
    text = console.export_text()
    assert ["its GPU has" in text, "at most" in text, "No process reserves a GPU" in text] == [gpus, gpus, not gpus]


def test_gpus_are_added_up() -> None:
    found = check(load_recipe(RECIPES / "flux_hps_branch.yaml"))
    assert found.gpus == {"pools.learner": 8, "pools.rollout_workers": 7, "pools.rewards.hps": 1}


def test_the_command_tells_and_fails_where_something_is_missing() -> None:
    from branchgrpo.cluster.cli import app

    runner = CliRunner()
    fine = runner.invoke(app, ["check", "glyphs", "iterations=2", "runs=my runs"])
    assert fine.exit_code == 0, fine.output
    for told in ("forward passes", "1.31 million parameters", "850 prompts to train on, 150 prompts held out"):
        assert told in fine.output
    assert fine.output.endswith("next: branchgrpo train glyphs iterations=2 'runs=my runs'\n")
    missing = runner.invoke(app, ["check", str(RECIPES / "wan21_video.yaml")])
    assert missing.exit_code == 1
    assert "policy.pretrained is 'models/Wan2.1" in missing.output


@pytest.mark.parametrize(
    ("override", "bound"),
    [
        ("threads=99999999999", "less than or equal to 1024"),
        ("pools.learner.count=2147483648", "less than or equal to 10000"),
        ("policy.height=9223372036854775807", "less than or equal to 16384"),
        ("schedule={method: mix_grpo, window: 1099511627776}", "less than or equal to 10000"),
        ("iterations=9223372036854775807", "less than or equal to 1000000000"),
        ("checkpoint.disk_timeout_seconds=1e30", "less than or equal to 1000000"),
        ("pools.learner.cpus=1e-9", "can't be reserved"),
        ("pools.learner.gpus=1e20", "can't be reserved"),
    ],
)
def test_what_has_a_bound_by_nature_has_it_here(override: str, bound: str) -> None:
    with pytest.raises(InputError, match=bound):
        load_recipe(RECIPES / "glyphs.yaml", [override])


@pytest.mark.parametrize("runs", ["/dev/null/x", "/proc/x", __file__, "a\0b", "x" * 300])
def test_a_place_where_no_folder_can_be_made_is_told(runs: str, run_settings: Settings, tmp_path: Path) -> None:
    settings = run_settings({"runs": runs})
    (told,) = check(settings).missing
    assert told.startswith(f"runs is '{runs}': run folder ")
    with pytest.raises(InputError) as refused, RunFolder.create(settings):
        pass
    assert str(refused.value) == told
    assert check(run_settings()).missing == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "/"])
def test_what_is_no_file_is_told(kind: str, run_settings: Settings, tmp_path: Path) -> None:
    """And not waited for."""
    path = tmp_path / "odd.txt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/" if kind == "/" else "/dev/null")
    for setting in ("prompts.train", "prompts.held_out", "policy.pretrained", "policy.start_from"):
        (told,) = check(run_settings({setting: str(path)})).missing
        assert told.startswith((f"{setting} is '{path}'", f"{setting}.path is '{path}'"))


def test_a_package_that_train_would_miss_is_missing_here(
    run_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it weren't installed
    (told,) = check(run_settings({"logging.wandb_project": "mine"})).missing
    assert told.endswith("pip install wandb")
