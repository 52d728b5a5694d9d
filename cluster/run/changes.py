"""Which settings may change when a run continues: all that don't contradict its checkpoints."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...proto.errors import InputError
from ...proto.prompt import identity
from ...proto.prompts import prompts_in
from ...proto.settings import RunSettings
from .evaluation import short_name
from .prompt_order import training_and_held_out

FIXED_SETTINGS = {
    "policy.precision": "the checkpoint's weights and optimizer states are in the one it was made with",
    "policy.start_from": "what the run has learned is a difference to what it started from",
    "learner.lora": "the checkpoint holds the weights of these adapters and no others",
}
"""Settings, or sections of them, that no resumed run may change, each with the reason."""
PLACES = ("name", "runs", "resume", "prompts.column", "prompts.picture_column")
"""Settings that say where a run is and how it is started. Prompts are compared by their content."""
Content = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """A setting that a resumed run has another value for. Values are plain data; None may stand for no such setting."""

    setting: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.setting}: {_short(self.before)} -> {_short(self.now)}"


def find_changes(
    before: RunSettings, now: RunSettings, policy_before: str | None = None, policy_now: str | None = None
) -> list[Change]:
    """What is changed from one recipe of a run to the next, where policies are told apart by their fingerprints.

    Raises InputError, with the reason, for what contradicts the run's checkpoints.
    """
    changes = list(_differences(_plain(before), _plain(now)))
    for change in changes:
        for fixed, reason in FIXED_SETTINGS.items():
            if f"{change.setting}.".startswith(f"{fixed}."):
                raise InputError(f"{change} can't be changed when a run continues: {reason}")
    stages = {before.learner.zero_stage, now.learner.zero_stage}
    if len(stages) > 1 and stages != {1, 2}:
        raise InputError(
            f"learner.zero_stage: {before.learner.zero_stage} -> {now.learner.zero_stage} can't be changed when a run "
            "continues: the checkpoint's optimizer states are laid out differently at these stages (1 and 2 are alike)"
        )
    if policy_before and policy_now and policy_before != policy_now:
        raise InputError(
            f"policy.pretrained is '{now.policy.pretrained}', which holds other weights than the run began with "
            f"('{before.policy.pretrained}'): what it has learned is a difference to those"
        )
    if now.prompts.held_out is None and now.prompts.held_out_count:
        trained_on, _ = training_and_held_out(before)
        _, held_out = training_and_held_out(now)
        if both := set(trained_on) & set(held_out):
            raise InputError(
                f"prompts.held_out_count would hold out {len(both)} prompts that the run has trained on, such as "
                f"'{min(both)}'; name others with prompts.held_out"
            )
    return changes


def _plain(settings: RunSettings) -> dict[str, Any]:
    """Settings as plain data; prompts by what the files hold, wherever these are."""
    content = settings.model_dump(mode="json")
    for name in ("train", "held_out"):
        if getattr(settings.prompts, name):
            prompts = prompts_in(settings.prompts, name, quiet=True)
            name_of_content = short_name([identity(prompt) for prompt in prompts])
            content["prompts"][name] = f"{len(prompts)} prompts ({name_of_content})"
    return content


def _differences(before: Content, now: Content, prefix: str = "") -> Iterator[Change]:
    for key in {**before, **now}:
        name, one, other = f"{prefix}{key}", before.get(key), now.get(key)
        if name in PLACES or one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{name}.")
        else:
            yield Change(name, one, other)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:199]}…"
