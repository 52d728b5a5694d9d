"""What training keeps to with any family: the transitions that were sampled, and what plain diffusers draws."""

from pathlib import Path

import numpy as np
import torch
from branchgrpo.cluster.run.in_process import InProcessLoop
from branchgrpo.rollout_workers.policies.base import trainable
from families import FAMILIES
from plain_diffusers import STEPS, all_of_theirs, plain, policy_of, prompts_of, starts, two_iterations
from support import COUNTING, Settings

ALIKE = (
    "FLUX.1-schnell",
    "FLUX.2 klein",
    "HunyuanVideo 1.5",
    "LTX-2, picture",
    "LTX-2.3, picture",
    "LTX-2.5",
    "Qwen-Image-Edit",
    "SD2.1 (v)",
    "SD3.5 without T5",
    "SDXL (v)",
)
"""Families that train a network of the same class as another family: `tests/slow` trains these."""
DIFFERENT = tuple(name for name in FAMILIES if name not in ALIKE)
ADAPTERS: dict[str, dict[str, int] | None] = {"full": None, "lora": {"rank": 2, "alpha": 4}}


def assert_ratio_one_in_bfloat16(family: str, adapter: str, run_settings: Settings, folder: Path) -> None:
    """With recomputed activations, in two iterations."""
    settings = policy_of(family, folder / "pipeline").model_copy(update={"precision": "bfloat16"})
    reports = two_iterations(settings, ADAPTERS[adapter], run_settings, prompts_of(family))
    assert [report.updates[0].logprob_abs_diff for report in reports] == [0, 0]
    assert all(report.updates[0].gradient_norm > 0 for report in reports)


def assert_an_update_is_exported(family: str, adapter: str, run_settings: Settings, folder: Path) -> None:
    """An update trains the network alone, and plain diffusers draws with the export what an evaluation draws."""
    settings, prompts, lora = policy_of(family, folder / "pipeline"), prompts_of(family), ADAPTERS[adapter]
    run = run_settings(
        {
            "policy": settings.model_dump(),
            "schedule": {"steps": 3, "splits": {0: 2, 1: 2}, "eta": 0.5},
            "evaluation.steps": STEPS,
            "rewards": COUNTING,
            "prompts.per_iteration": 2,
            "learner.updates_per_iteration": 1,
            "learner.lora": lora,
            "learner.optimizer": {"learning_rate": 1e-2},
        }
    )
    loop = InProcessLoop(run, prompts)
    pipeline = loop.policy.pipeline
    everything = {
        f"{name}.{parameter}": value
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
        for parameter, value in part.state_dict().items()
    }
    trained = {id(p) for p in trainable(loop.policy.network).values()}
    assert trained
    before = {name: value.clone() for name, value in everything.items()}
    parameters = {id(p.data) for p in trainable(loop.policy.network).values()}
    assert parameters
    loop.iterate(1)
    changed = {name for name, value in everything.items() if not torch.equal(before[name], value)}
    assert changed
    assert all(name.split(".")[0] in loop.policy.networks for name in changed)
    if lora:
        assert all("lora" in name for name in changed)

    evaluation = loop.evaluate(prompts)
    exported = loop.policy.save(folder / "exported")
    loaded = plain(settings.pretrained)
    for number, name in enumerate(loop.policy.loaded_networks):
        if lora and hasattr(loaded, "load_lora_weights"):
            second = {"load_into_transformer_2": True} if number else {}
            file = exported if exported.is_file() else sorted(exported.iterdir())[number]
            loaded.load_lora_weights(file.parent, weight_name=file.name, **second)
        else:
            own = exported if exported.name == name else exported / name
            setattr(loaded, name, type(getattr(loaded, name)).from_pretrained(own))
    noise = starts(loop.policy, run.evaluation.seed)
    for name, reference in all_of_theirs(loaded, settings, noise, prompts, loop.policy.picture_size).items():
        drawn, largest = getattr(evaluation.media, name), {"pictures": 255, "sound": 32767}[name]
        assert np.abs(drawn / largest - reference.clip(-1, 1)).max() <= 1.01 / 255
        assert drawn.std() > 2 / 255 * largest
