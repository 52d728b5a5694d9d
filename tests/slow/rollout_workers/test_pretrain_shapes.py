"""How the embedded policy `shapes` is made."""

from pathlib import Path

from branchgrpo.rollout_workers.shapes.pretrain import pretrain


def test_pretraining_is_seeded(tmp_path: Path) -> None:
    steps = {"vae_steps": 1, "clean_steps": 1, "misread_steps": 1, "pictures_per_scene": 1}
    one, same, other = (pretrain(tmp_path / name, seed=seed, **steps) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    for part in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder_2/model"):
        contents = [(folder / f"{part}.safetensors").read_bytes() for folder in (one, same, other)]
        assert contents[0] == contents[1] != contents[2]
