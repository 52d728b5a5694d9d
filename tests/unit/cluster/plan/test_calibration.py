"""What a device does in a second: measured, kept in a file, and used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from branchgrpo.cluster.plan.calibration import (
    Calibration,
    Pace,
    calibration_file,
    device_of,
    find_calibration,
    load_calibration,
)
from branchgrpo.cluster.plan.flops import count_work
from branchgrpo.cluster.plan.measuring import Batches, device_name, device_peak, measure, out_of_memory
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.media import Media
from branchgrpo.reward_service.interface import PerFrame
from branchgrpo.rollout_workers.policies.load import load_policy
from plain_diffusers import policy_of
from support import ROOT, Settings


def test_a_calibration_is_found_by_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_calibration("NVIDIA H100 80GB HBM3") is None
    own = Calibration(
        "NVIDIA H100 80GB HBM3", 989e12, "its data sheet", "bfloat16", "flux", {"forward": Pace(0.5, 1.0)}
    )
    own.save(calibration_file(own.device))
    assert calibration_file(own.device) == tmp_path / "branchgrpo/calibration/nvidia_h100_80gb_hbm3.json"
    assert find_calibration(own.device) == own
    assert device_of(own).name == "h100"
    assert own.pace("forward").utilisation == 0.5
    assert own.pace("trained").utilisation == 0.4  # assumed
    assert own.scoring("hps", "bfloat16").utilisation == 0.2
    assert own.scoring("hps", "float32").utilisation == 0.5


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "\xff", '{"device": "x"}', '{"paces": []}', '{"paces": null}'),
        *('{"paces": {"forward": {"speed": 1}}}', '{"paces": {"forward": {"utilisation": 0.4, "speed": 1}}}'),
        *('{"paces": {"forward": {"utilisation": "fast"}}}', '{"paces": {"forward": 0.4}}'),
        *('{"paces": {"forward": {"utilisation": 0.4}}, "cores": 1.5}', '{"paces": {"f": {"calls": {"one": 1}}}}'),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "own.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"own\.json can't be read: it isn't what `branchgrpo calibrate` writes"):
        load_calibration(tmp_path / "own.json")


def test_files_keep_all_that_was_measured(tmp_path: Path) -> None:
    """Those of earlier versions, without seconds of single calls, are read as well."""
    kept = load_calibration(ROOT / "docs" / "h100" / "calibration.json")
    assert (kept.device, kept.cores, kept.pace("decode").calls) == ("NVIDIA H100 80GB HBM3", 0, {})
    paces = {"forward": Pace(0.5, 1.0, 0.1, {1: 1.1, 16: 16.5}), "own": Pace(None, 0.25)}
    own = Calibration("CPU x", 1e11, "measured", "float32", "flux", paces, cores=4, slowdown=1.5)
    own.save(tmp_path / "own.json")
    assert load_calibration(tmp_path / "own.json") == own


@pytest.mark.parametrize("family", ["FLUX.1-dev", "FLUX.1 Kontext"])
def test_every_kind_of_work_is_measured(family: str, run_settings: Settings, tmp_path: Path) -> None:
    """Seconds of a call and of its items make up the seconds of the largest call, and the share goes by the items."""
    settings = run_settings({"policy": policy_of(family, tmp_path / "pipeline").model_dump()})
    policy, work = load_policy(settings.policy), count_work(settings)
    seen: list[tuple[int, ...]] = []

    def scorer(media: Media, prompts: list[str]) -> dict[str, np.ndarray]:
        seen.append(media.looks().shape)
        assert media.latents is not None
        assert media.latents.any(), "drawn, not empty"
        return {"own": np.zeros(len(prompts))}

    peak, _ = device_peak(torch.device("cpu"), "float32")
    found = {own.work: own for own in measure(policy, Batches(4, 2, 2, {"own": 3}), work, peak, {"own": scorer})}
    assert list(found) == ["forward", "trained", "decode", "own"]
    assert {shape[1:] for shape in seen} == {(settings.policy.height, settings.policy.width, 3)}
    for own, largest in zip(found.values(), (4, 2, 2, 3), strict=True):
        assert list(own.seconds) == [1, largest]
        assert own.pace.call + largest * own.pace.item == pytest.approx(own.seconds[largest])
    assert found["own"].pace.utilisation is None
    assert found["trained"].pace.utilisation * found["trained"].pace.item * peak == pytest.approx(work.trained_row)
    assert all(parameter.grad is None for parameter in policy.network.parameters())


def test_clips_are_scored_in_calls_as_runs_make(run_settings: Settings, tmp_path: Path) -> None:
    """Of no more frames than the pool's pictures."""
    settings = run_settings({"policy": policy_of("Wan 2.1", tmp_path / "pipeline").model_dump()})
    calls: list[int] = []

    def score(pictures: np.ndarray, prompts: list[str]) -> dict[str, np.ndarray]:
        calls.append(len(pictures))
        return {"own": np.zeros(len(prompts))}

    policy = load_policy(settings.policy)
    *_, own = measure(policy, Batches(1, 1, 1, {"own": 2}), None, 1e9, {"own": PerFrame(score)})
    assert settings.policy.frames > max(calls) == 2
    assert list(own.seconds) == [1, 2], "leaves"


def test_batches_without_memory_end_a_measurement(run_settings: Settings) -> None:
    """On a CPU torch raises no OutOfMemoryError for what it can't allocate."""

    def scorer(media: Media, prompts: list[str]) -> dict[str, np.ndarray]:
        if len(media) > room:
            torch.empty(2**60)
        return {"own": np.zeros(len(media))}

    policy = load_policy(run_settings().policy)
    for room in (1, 16):
        *_, own = measure(policy, Batches(1, 1, 1, {"own": 64}), None, 1e9, {"own": scorer})
        assert max(own.seconds) == room
        assert own.pace.call + room * own.pace.item == pytest.approx(own.seconds[room])
    room = 0
    with pytest.raises(RuntimeError) as raised:
        list(measure(policy, Batches(1, 1, 1, {"own": 64}), None, 1e9, {"own": scorer}))
    assert out_of_memory(raised.value)
    assert not out_of_memory(RuntimeError("shapes differ"))


def test_this_machine_has_a_name_and_a_peak() -> None:
    cpu = torch.device("cpu")
    peak, source = device_peak(cpu, "float32")
    assert device_name(cpu).startswith("CPU ")
    assert source.startswith("measured")
    assert 1e8 < peak < 1e14
