"""How the embedded policy is made."""

from pathlib import Path

from branchgrpo.rollout_workers.glyphs.pretrain import pretrain


def test_pretraining_is_seeded(tmp_path: Path) -> None:
    first, second, other = (
        pretrain(tmp_path / name, seed=seed, vae_steps=2, clean_steps=2, scribbled_steps=1, pictures_per_word=1)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    for part in ("transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder_2/model"):
        contents = [(folder / f"{part}.safetensors").read_bytes() for folder in (first, second, other)]
        assert contents[0] == contents[1]
        assert contents[0] != contents[2]
