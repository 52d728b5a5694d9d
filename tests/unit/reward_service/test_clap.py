"""CLAP's score of sounds, against transformers, and how long sounds are heard."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.proto.scoring import ScoreRequest
from branchgrpo.proto.settings import RewardPoolSettings, RewardSettings
from branchgrpo.reward_service.clap import check_files, windows
from branchgrpo.reward_service.scorers import Scorers
from branchgrpo.rollout_workers.glyphs.pretrain import character_tokenizer
from support import PROMPTS, scores
from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel

RATE = 48_000


def saved(folder: Path, **audio: object) -> Path:
    """A small random model in the published layout."""
    torch.manual_seed(2)
    tokenizer = character_tokenizer()
    small = {"hidden_size": 16, "num_attention_heads": [1, 2], "depths": [1, 1], "patch_embeds_hidden_size": 8}
    model = ClapModel(
        ClapConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "max_position_embeddings": len(tokenizer) + 9,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            audio_config={**small, "num_mel_bins": 16, "spec_size": 64, "window_size": 4, **audio},
            projection_dim=12,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    ClapFeatureExtractor(feature_size=16, max_length_s=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("clap"))


def sounds(seconds: float, channels: int = 2, rate: int = RATE) -> Media:
    shape = (len(PROMPTS), channels, round(seconds * rate))
    return Media(sound=np.random.default_rng(0).integers(-9000, 9000, shape, np.int16), sample_rate=rate)


@torch.no_grad()
def theirs(folder: Path, waveforms: np.ndarray) -> np.ndarray:
    """What plain transformers says of waveforms, [n, samples], that are short enough."""
    model, extractor = ClapModel.from_pretrained(folder).eval(), ClapFeatureExtractor.from_pretrained(folder)
    texts = AutoTokenizer.from_pretrained(folder)(list(PROMPTS), padding=True, return_tensors="pt")
    heard = extractor([*waveforms], sampling_rate=RATE, truncation="rand_trunc", return_tensors="pt")
    found = model(
        input_ids=texts.input_ids, attention_mask=texts.attention_mask, input_features=heard.input_features.float()
    )
    return (found.text_embeds * found.audio_embeds).sum(dim=1).numpy()


def test_scores_are_those_of_plain_transformers(folder: Path) -> None:
    for seconds, channels in ((1.0, 2), (0.4, 1)):
        media = sounds(seconds, channels)
        found = scores("clap", RewardSettings(pretrained=str(folder)), media)
        expected = theirs(folder, media.sound.mean(axis=1) / 32767)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.ptp(found) > 1e-3


def test_a_long_sound_is_heard_whole(folder: Path) -> None:
    """Its score is the mean of its windows', each of which is scored as a sound by itself."""
    media = sounds(2.5, 1)
    found = scores("clap", RewardSettings(pretrained=str(folder)), media)
    begins = (0, 0.75, 1.5)
    parts = [theirs(folder, media.sound[:, 0, round(b * RATE) : round((b + 1) * RATE)] / 32767) for b in begins]
    np.testing.assert_allclose(found, np.mean(parts, axis=0), atol=1e-5)


def test_no_more_windows_are_heard_at_once_than_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewards, pools = {"clap": RewardSettings(pretrained=str(folder))}, {"clap": RewardPoolSettings(batch_pictures=2)}
    request, heard = ScoreRequest(sounds(2.5, 1), PROMPTS, ["clap"]), []
    whole = Scorers(rewards).score(request).scores["clap"]
    hear = ClapModel.get_audio_features

    def recorded(model: ClapModel, features: torch.Tensor) -> object:
        heard.append(len(features))
        return hear(model, features)

    monkeypatch.setattr(ClapModel, "get_audio_features", recorded)
    found = Scorers(rewards, pools=pools).score(request).scores["clap"]
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert (max(heard), sum(heard)) == (2, 3 * len(PROMPTS))


def test_another_sample_rate_changes_little_of_a_tone() -> None:
    def tone(rate: int) -> Media:
        wave = 9000 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
        return Media(sound=wave.round().astype(np.int16)[None, None], sample_rate=rate)

    there, here = windows(tone(RATE), RATE, RATE), windows(tone(44_100), RATE, RATE)
    assert there.shape == here.shape == (1, 1, RATE)
    assert np.abs(there - here)[..., 500:-500].max() < 1e-3


def test_what_clap_cannot_score_is_refused(folder: Path, tmp_path: Path) -> None:
    settings = RewardSettings(pretrained=str(folder))
    with pytest.raises(InputError, match=r"rewards.clap scores sounds, and was given a picture"):
        scores("clap", settings, np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="a reward of pictures was given sounds"):
        scores("jpeg_compressibility", RewardSettings(), sounds(0.1))
    with pytest.raises(InputError, match="must be the folder of a CLAP model"):
        check_files("clap", RewardSettings(pretrained=str(tmp_path)))
    fused = saved(tmp_path, enable_fusion=True)
    with pytest.raises(InputError, match="feature fusion"):
        check_files("clap", RewardSettings(pretrained=str(fused)))


def test_sounds_of_a_large_prime_rate_take_little_memory() -> None:
    rate = 767_957
    media = sounds(0.2, rate=rate)
    tracemalloc.start()
    try:
        heard = windows(media, RATE, RATE)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert heard.shape == (len(PROMPTS), 1, round(0.2 * RATE))
    assert most < 100e6
