"""Models in a single file draw, train and export what the folder that they were made of does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from branchgrpo.cluster.cli import app
from branchgrpo.cluster.commands.check import check
from branchgrpo.cluster.run.console import RunDisplay
from branchgrpo.cluster.run.folder import RunFolder
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.cluster.run.new_folder import policy_fingerprint
from branchgrpo.cluster.train import train
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.settings import PolicySettings
from branchgrpo.rollout_workers.policies.load import find_policy, load_policy
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from families import saved
from plain_diffusers import policy_of
from rich.console import Console
from small_pipelines.single_file import (
    published_qwen_image,
    published_wan,
    published_z_image,
    save_as_single_file,
)
from support import COUNTING, Settings, trained_policy
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> PolicySettings:
    return policy_of("SD1.5", tmp_path_factory.mktemp("folder") / "pipeline")


@pytest.fixture(scope="module")
def file(folder: PolicySettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_file(folder, tmp_path_factory.mktemp("file"))


@pytest.fixture
def configs(folder: PolicySettings, tmp_path: Path) -> Path:
    return without_weights(folder, tmp_path / "configs")


def as_file(folder: PolicySettings, to: Path) -> Path:
    return save_as_single_file(DiffusionPipeline.from_pretrained(folder.pretrained), to / "tuned.safetensors")


def without_weights(folder: PolicySettings, to: Path) -> Path:
    for path in Path(folder.pretrained).rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            target = to / path.relative_to(folder.pretrained)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to


def single(folder: PolicySettings, file: Path, config: Path) -> PolicySettings:
    return folder.model_copy(update={"pretrained": str(file), "config": config})


def same(one: Any, other: Any) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("family", ["SD1.5", "SDXL"])
def test_a_file_is_read_as_the_folder_that_it_was_made_of(family: str, tmp_path: Path) -> None:
    folder = policy_of(family, tmp_path / "pipeline")
    from_file = single(folder, as_file(folder, tmp_path), without_weights(folder, tmp_path / "configs"))
    ours, expected = load_policy(from_file), load_policy(folder)
    parts = [name for name, part in expected.pipeline.components.items() if isinstance(part, torch.nn.Module)]
    assert len(parts) == (4 if family == "SDXL" else 3)
    for part in parts:
        same(getattr(ours.pipeline, part), getattr(expected.pipeline, part))
    assert ours.folder.name == "tuned"
    for name, value in expected.encode("1").items():
        assert torch.equal(ours.encode("1")[name], value), name
    assert find_policy(from_file)[0] == ours.folder  # converted once


def test_a_run_from_a_file_is_checked_trained_and_exported(
    folder: PolicySettings, file: Path, configs: Path, run_settings: Settings, tmp_path: Path
) -> None:
    common = {
        "rewards": COUNTING,
        "prompts.per_iteration": 2,
        "learner.updates_per_iteration": 1,
        "schedule": {"steps": 4, "splits": {0: 2}, "kernel": "ddim", "eta": 0.5},
    }
    run = run_settings({**common, "policy": single(folder, file, configs).model_dump()})
    assert not check(run).missing
    assert policy_fingerprint(run)
    loops = [
        InProcessLoop(own, ("123", "456")) for own in (run, run_settings({**common, "policy": folder.model_dump()}))
    ]
    for loop in loops:
        loop.iterate(1)
    same(*(loop.policy.network for loop in loops))
    exported = loops[0].policy.save(tmp_path / "exported")
    again = StableDiffusionPipeline.from_pretrained(folder.pretrained).unet.from_pretrained(exported)
    same(again, loops[0].policy.network)


def test_a_run_from_a_file_resumes_and_is_evaluated(
    folder: PolicySettings, file: Path, configs: Path, run_settings: Settings
) -> None:
    """As one of the folder that runs through, from its checkpoint on, and also where the configuration has moved."""
    quiet = RunDisplay(Console(quiet=True))
    common = {
        "rewards": COUNTING,
        "prompts.per_iteration": 2,
        "schedule": {"steps": 3, "splits": {0: 2}, "kernel": "ddim", "eta": 0.5},
        "evaluation": {"every": 2, "prompts": 2},
    }
    straight = train(run_settings({**common, "policy": folder.model_dump(), "name": "straight"}), quiet)
    halved = run_settings({**common, "policy": single(folder, file, configs).model_dump(), "iterations": 1})
    resumed = train(halved, quiet)
    moved = configs.rename(configs.with_name("moved"))
    train(run_settings({**common, "policy": single(folder, file, moved).model_dump()}), quiet, resume=True)
    folders = [RunFolder.open(path) for path in (resumed, straight)]
    same(*(trained_policy(own).network for own in folders))
    told = [{k: v for k, v in own.lines("evaluations")[-1].items() if "seconds" not in k} for own in folders]
    assert told[0] == told[1]
    done = [CliRunner().invoke(app, ["evaluate", str(own.path)]) for own in folders]
    assert [own.exit_code for own in done] == [0, 0], done[0].output
    figures = [re.findall(r"\d+\.\d+", own.output) for own in done]
    assert figures[0] == figures[1] != []


def test_a_network_alone_takes_the_other_parts_from_the_folder(tmp_path: Path) -> None:
    folder = policy_of("FLUX.1-dev", tmp_path / "pipeline")
    expected = load_policy(folder)
    weights = {name: value + 1 for name, value in expected.network.state_dict().items()}
    safetensors.torch.save_file(weights, tmp_path / "tuned.safetensors")
    ours = load_policy(single(folder, tmp_path / "tuned.safetensors", Path(folder.pretrained)))
    for name, value in ours.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    same(ours.vae, expected.vae)
    assert (ours.folder / "text_encoder").is_symlink()


@pytest.mark.parametrize(
    ("family", "published", "names"),
    [
        ("Z-Image", published_z_image, {"x_embedder.weight", "layers.0.attention.qkv.weight"}),
        ("Wan 2.1", published_wan, {"head.modulation", "blocks.0.modulation", "blocks.1.cross_attn.o.weight"}),
        ("Qwen-Image", published_qwen_image, {"img_in.weight", "transformer_blocks.0.attn.add_q_proj.weight"}),
    ],
)
def test_a_network_is_read_by_its_published_names(
    family: str, published: Callable[..., dict[str, torch.Tensor]], names: set[str], tmp_path: Path
) -> None:
    folder = policy_of(family, tmp_path / "pipeline")
    network = load_policy(folder, network_only=True).network
    weights = published(network.state_dict())  # type: ignore[attr-defined]
    assert names <= weights.keys()
    safetensors.torch.save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "tuned.safetensors")
    ours = load_policy(single(folder, tmp_path / "tuned.safetensors", Path(folder.pretrained)), network_only=True)
    same(ours.network, network)


def test_what_cannot_be_read_is_named(folder: PolicySettings, file: Path, configs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"policy.pretrained is '.*none.safetensors'; there is no such file"):
        find_policy(single(folder, tmp_path / "none.safetensors", configs))
    with pytest.raises(InputError, match=r"none/model_index.json can't be read: No such file"):
        find_policy(single(folder, file, tmp_path / "none"))
    other = saved("SDXL", tmp_path / "other")
    with pytest.raises(
        InputError, match=r"tuned.safetensors', which can't be read as a StableDiffusionXLPipeline with"
    ):
        find_policy(single(folder, file, other))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"broken.safetensors is no whole safetensors file"):
        find_policy(single(folder, broken, configs))
    assert not list((tmp_path / "cache").rglob(".partial-*"))


def test_a_file_and_its_config_go_together(run_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a .safetensors file, and only one, needs the folder of a pipeline like it"):
        run_settings({"policy.pretrained": "tuned.safetensors"})
    with pytest.raises(InputError, match="a .safetensors file, and only one, needs the folder of a pipeline like it"):
        run_settings({"policy.config": str(tmp_path)})
