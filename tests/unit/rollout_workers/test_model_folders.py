"""Folders of models that aren't whole: refused in a line that names what is wrong, by `check` and by loading alike."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from branchgrpo.cluster.commands.check import check
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.settings import PolicySettings
from branchgrpo.rollout_workers.policies.load import load_policy
from families import saved
from support import Settings

Change = Callable[[Path], object]
VAE, TRANSFORMER = "vae/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.safetensors"
T5 = "text_encoder_2/model.safetensors"


@pytest.fixture
def folder(run_settings: Settings, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_settings().policy.pretrained, tmp_path / "pipeline"))


def weights(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Changes the tensors of a file."""

    def apply(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / file)
        change(tensors)
        safetensors.torch.save_file(tensors, folder / file, metadata={"format": "pt"})

    return apply


def facts(file: str, change: Callable[[Any], Any]) -> Change:
    """Changes the content of a JSON file."""

    def apply(folder: Path) -> None:
        (folder / file).write_text(json.dumps(change(json.loads((folder / file).read_text()))))

    return apply


def renamed(file: str, name: str) -> Change:
    return lambda folder: (folder / file).rename((folder / file).with_name(name))


def sharded(file: str, change: Callable[[dict[str, str], Path], object]) -> Change:
    """Cuts a part's weights into two files with an index."""

    def apply(folder: Path) -> None:
        path = folder / file
        tensors = safetensors.torch.load_file(path)
        stem, suffix = path.name.split(".", 1)
        names = sorted(tensors)
        shards = [f"{stem}-0000{n}-of-00002.{suffix}" for n in (1, 2)]
        for shard, own in zip(shards, (names[::2], names[1::2]), strict=True):
            safetensors.torch.save_file({name: tensors[name] for name in own}, path.with_name(shard), {"format": "pt"})
        places = {name: shards[i % 2] for i, name in enumerate(names)}
        change(places, path.parent)
        path.with_name(f"{path.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
        path.unlink()

    return apply


def linked(file: str) -> Change:
    def apply(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to("/blobs/gone")

    return apply


def cut(file: str, size: int) -> Change:
    return lambda folder: os.truncate(folder / file, size)


def wrote(file: str, text: str) -> Change:
    return lambda folder: (folder / file).write_text(text)


def fused(tensors: dict[str, torch.Tensor]) -> None:
    block = next(name for name in tensors if name.endswith("attn.to_q.weight")).removesuffix("to_q.weight")
    tensors[f"{block}to_qkv.weight"] = torch.cat([tensors.pop(f"{block}to_{x}.weight") for x in "qkv"])


def adapted(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.endswith("attn.to_q.weight"))
    tensors[name.replace(".weight", ".base_layer.weight")] = tensors.pop(name)


def reshaped(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: torch.zeros(3, 5)})


def eight_bits(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)})


Q = "encoder.block.0.layer.0.SelfAttention.q.weight"
IN, OUT = "decoder.conv_in.weight", "proj_out.weight"
BROKEN: dict[str, tuple[Change, str]] = {
    "a weight of an encoder is missing": (
        weights(T5, lambda t: t.pop(Q)),
        f"{T5} lacks '{Q}' of a T5EncoderM",
    ),
    "two of the autoencoder": (
        weights(VAE, lambda t: (t.pop(IN), t.pop("decoder.conv_in.bias"))),
        f"{VAE} lacks 'decoder.conv_in.bias' of a AutoencoderKL, and 1 more",
    ),
    "one of the network": (weights(TRANSFORMER, lambda t: t.pop(OUT)), f"{TRANSFORMER} lacks '{OUT}'"),
    "one too many": (
        weights(T5, lambda t: t.update(more=torch.zeros(2))),
        f"{T5} holds 'more', which is no weight of this T5EncoderModel",
    ),
    "another shape": (weights(T5, reshaped(Q)), f"{T5} holds '{Q}' of shape 3x5; this T5EncoderModel has "),
    "another shape of the network": (weights(TRANSFORMER, reshaped(OUT)), f"holds '{OUT}' of shape 3x5; this Flux"),
    "float8": (weights(TRANSFORMER, eight_bits(OUT)), f"holds '{OUT}' as F8_E4M3; take the pipeline's weights in bf"),
    "float8 of an encoder": (weights(T5, eight_bits(Q)), f"holds '{Q}' as F8_E4M3; take the pipeline's weights in"),
    "quantized": (
        facts("transformer/config.json", lambda c: {**c, "quantization_config": {"quant_method": "bitsandbytes"}}),
        "transformer is quantized (its config.json has a quantization_config)",
    ),
    "fused": (weights(TRANSFORMER, fused), "to_qkv.weight': its projections are fused; undo that (unfuse_qkv"),
    "adapters": (weights(TRANSFORMER, adapted), "base_layer.weight': adapters of PEFT lie around its weights; merge"),
    "variants only": (
        renamed(VAE, "diffusion_pytorch_model.fp16.safetensors"),
        f"{VAE}, weights of a AutoencoderKL: missing; there are files of the variant fp16 only, which policy.variant",
    ),
    "pickled": (renamed(T5, "pytorch_model.bin"), f"{T5}, weights of a T5EncoderModel: missing; there is a .bin"),
    "a link to nowhere": (linked(T5), f"{T5}, weights of a T5EncoderModel: a link to /blobs/gone, which isn't there"),
    "cut off": (cut(TRANSFORMER, 5000), f"{TRANSFORMER} is no whole safetensors file"),
    "empty": (cut(VAE, 0), f"{VAE} is no whole safetensors file"),
    "a pointer": (wrote(T5, "version https://git-lfs.github.com/spec/v1\n"), "a pointer of Git LFS; fetch the file"),
    "a shard is missing": (
        sharded(T5, lambda places, part: (part / max(places.values())).unlink()),
        "text_encoder_2/model-00002-of-00002.safetensors, weights of a T5EncoderModel: missing",
    ),
    "a shard lacks a weight": (
        sharded(TRANSFORMER, lambda places, part: weights(places[OUT], lambda t: t.pop(OUT))(part)),
        f"transformer lacks '{OUT}' of a FluxTransformer2DModel",
    ),
    "an index without a map": (
        sharded(TRANSFORMER, lambda places, part: places.clear()),
        "transformer/diffusion_pytorch_model.safetensors.index.json has no weight_map",
    ),
    "no object": (wrote("model_index.json", "[]"), "model_index.json is broken: it holds no JSON object"),
    "broken": (wrote("model_index.json", "{"), "model_index.json is broken: "),
    "deep": (wrote("model_index.json", "[" * 100_000), "model_index.json is broken: "),
    "a custom class": (
        facts("model_index.json", lambda i: {**i, "_class_name": ["my", "Pipeline"]}),
        "model_index.json names the class ['my', 'Pipeline']; it must be the name of a diffusers pipeline",
    ),
    "an odd part": (
        facts("model_index.json", lambda i: {**i, "vae": ["diffusers"]}),
        "model_index.json says of vae ['diffusers']; it must be a library and a class",
    ),
    "a part of nobody's": (
        facts("model_index.json", lambda i: {**i, "vae": ["mine", "Vae"]}),
        "vae, a Vae of 'mine': only diffusers' and transformers' are known",
    ),
    "no network": (
        facts("model_index.json", lambda i: {**i, "transformer": [None, None]}),
        "whose model_index.json names no transformer",
    ),
    "an unknown class": (
        facts("model_index.json", lambda i: {**i, "vae": ["diffusers", "Nope"]}),
        "vae/config.json makes no Nope: ",
    ),
    "a class of another kind": (
        facts("model_index.json", lambda i: {**i, "text_encoder_2": ["transformers", "T5TokenizerFast"]}),
        "text_encoder_2/config.json makes no T5TokenizerFast: ",
    ),
    "no config": (lambda folder: (folder / "vae/config.json").unlink(), "vae/config.json can't be read: No such file"),
    "a broken config": (wrote("text_encoder/config.json", "{"), "text_encoder/config.json is broken: "),
    "a config of nothing": (
        wrote("transformer/config.json", '{"num_layers": "two"}'),
        "transformer/config.json makes no",
    ),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "tokenizer, a CLIPTokenizer: missing"),
    "an empty tokenizer": (
        lambda folder: [file.unlink() for file in (folder / "tokenizer").iterdir()],
        "tokenizer, a CLIPTokenizer: its vocabulary is missing (tokenizer.json, or vocab.json and merges.txt)",
    ),
    "no scheduler": (
        lambda folder: shutil.rmtree(folder / "scheduler"),
        "scheduler, a FlowMatchEulerDiscreteScheduler: ",
    ),
    "a broken scheduler": (wrote("scheduler/scheduler_config.json", "{"), "which can't be loaded: "),
    "a file for a part": (
        lambda folder: (shutil.rmtree(folder / "vae"), (folder / "vae").touch()),
        "vae, a AutoencoderKL: no folder",
    ),
    "nothing": (
        lambda folder: (shutil.rmtree(folder), folder.mkdir()),
        "pipeline'; it must be a diffusers pipeline folder (with a model_index.json), glyphs, shapes, "
        "or a .safetensors file with policy.config",
    ),
    "a file": (
        lambda folder: (shutil.rmtree(folder), folder.touch()),
        "pipeline'; it must be a diffusers pipeline folder (with a model_index.json), glyphs, shapes, "
        "or a .safetensors file with policy.config",
    ),
    "an index that is a link to nowhere": (
        linked("model_index.json"),
        "model_index.json can't be read: a link to nowh",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_and_loading_refuse_a_broken_folder_alike(name: str, folder: Path, run_settings: Settings) -> None:
    change, told = BROKEN[name]
    change(folder)
    settings = run_settings({"policy.pretrained": str(folder)})
    with pytest.raises(InputError) as refused:
        load_policy(settings.policy)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)
    assert check(settings).missing == [str(refused.value)]


@pytest.mark.parametrize(
    ("family", "part"),
    [("FLUX.2 dev", "tokenizer"), ("Qwen-Image-Edit", "processor"), ("Qwen-Image 2.1", "processor")],
)
def test_processor_without_words_is_refused(family: str, part: str, tmp_path: Path) -> None:
    """transformers would make one that reads every prompt alike."""
    folder = saved(family, tmp_path / "pipeline")
    (folder / part / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=f"{part}, a .*Processor: its vocabulary is missing .tokenizer.json, or "):
        load_policy(PolicySettings(pretrained=str(folder), height=32, width=64, max_sequence_length=500, device="cpu"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_told(folder: Path, run_settings: Settings) -> None:
    settings = run_settings({"policy.pretrained": str(folder)})
    folder.chmod(0)
    try:
        with pytest.raises(InputError, match="policy.pretrained is "):
            load_policy(settings.policy)
    finally:
        folder.chmod(0o700)


def test_every_broken_part_has_its_line(folder: Path, run_settings: Settings) -> None:
    for file in (VAE, T5):
        (folder / file).unlink()
    (folder / "transformer/config.json").unlink()
    assert len(check(run_settings({"policy.pretrained": str(folder)})).missing) == 3


def old_names(tensors: dict[str, torch.Tensor]) -> None:
    """Those of autoencoders that were saved before diffusers 0.12."""
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        for name in [name for name in tensors if f".{new}." in name]:
            tensors[name.replace(f".{new}.", f".{old}.")] = tensors.pop(name)


@pytest.mark.parametrize(
    "change",
    [
        weights(VAE, old_names),
        weights(
            "text_encoder/model.safetensors",
            lambda t: t.update({"text_model.embeddings.position_ids": torch.arange(9)}),
        ),
        sharded(TRANSFORMER, lambda places, part: None),
        sharded(T5, lambda places, part: None),
        lambda folder: (folder / VAE).with_name("diffusion_pytorch_model.bin").touch(),
        lambda folder: shutil.copy(folder / T5, folder / "text_encoder_2/model.fp16.safetensors"),
    ],
    ids=["old names", "positions", "shards", "shards of an encoder", "a .bin beside", "a variant beside"],
)
def test_folders_that_diffusers_reads_draw_the_same(change: Change, folder: Path, run_settings: Settings) -> None:
    whole = load_policy(run_settings().policy)
    change(folder)
    settings = run_settings({"policy.pretrained": str(folder)})
    assert not check(settings).missing
    changed = load_policy(settings.policy)
    states = torch.randn(2, *whole.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, value in whole.encode("123").items():
            assert torch.equal(changed.encode("123")[name], value), name
        np.testing.assert_array_equal(changed.decode(states), whole.decode(states))
    for name, value in whole.network.state_dict().items():
        assert torch.equal(changed.network.state_dict()[name], value), name


def in_shards(folder: Path) -> None:
    sharded(TRANSFORMER, lambda places, part: None)(folder)
    for file in (folder / "transformer").glob("diffusion*"):
        index = file.name.removesuffix("index.json")
        new = f"{index}index.fp16.json" if index != file.name else file.name.replace("_model-", "_model.fp16-")
        file.rename(file.with_name(new))
    index = folder / "transformer/diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(index.read_text().replace("_model-", "_model.fp16-"))


@pytest.mark.parametrize(
    "change",
    [
        renamed(TRANSFORMER, "diffusion_pytorch_model.fp16.safetensors"),
        renamed(T5, "model.fp16.safetensors"),
        in_shards,
    ],
    ids=["network", "encoder", "shards"],
)
def test_weights_of_a_variant_are_taken_where_there_are(change: Change, folder: Path, run_settings: Settings) -> None:
    whole = load_policy(run_settings().policy)
    change(folder)
    settings = run_settings({"policy.pretrained": str(folder), "policy.variant": "fp16"})
    assert not check(settings).missing
    policy = load_policy(settings.policy)
    assert torch.equal(policy.encode("123")["prompt_embeds"], whole.encode("123")["prompt_embeds"])
    for name, value in whole.network.state_dict().items():
        assert torch.equal(policy.network.state_dict()[name], value), name
    settings = run_settings({"policy.pretrained": str(folder), "policy.variant": "bf16"})
    with pytest.raises(InputError, match=r"policy.variant is 'bf16'; no part of .* has weights of this variant"):
        load_policy(settings.policy)
    assert len(check(settings).missing) == 1


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        (
            "json:loads",
            "policy.adapter is 'json:loads'; it must be a class that can do what a Policy does, and it is no",
        ),
        (
            "pathlib:Path",
            "policy.adapter is 'pathlib:Path'; it must be a class that can do what a Policy does, and it has",
        ),
        ("nowhere:Policy", "policy.adapter is 'nowhere:Policy', which can't be imported"),
    ],
)
def test_an_adapter_that_is_no_policy_is_refused(adapter: str, told: str, run_settings: Settings) -> None:
    settings = run_settings({"policy.adapter": adapter})
    with pytest.raises(InputError) as refused:
        load_policy(settings.policy)
    assert str(refused.value).startswith(told)
    assert check(settings).missing == [str(refused.value)]
