"""Evaluations: deterministic samples of fixed prompts from fixed noise, scored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ...proto.media import Media, Pictures, joined
from ...proto.prompt import identity
from ...proto.schedule import ode_schedule
from ...proto.scoring import ScoreRequest
from ...proto.settings import JudgeSettings, PolicySettings, RunSettings
from ...proto.tree import FloatArray, Task
from ...reward_service.scorers import Scorers
from ...rollout_workers.diversity import Diversity
from .cuts import reads_latents, tasks

if TYPE_CHECKING:
    from ...rollout_workers.worker import RolloutWorker

MADE_WITH = "made_with"
"""Key of `made_with`'s result in a line of evaluations.jsonl."""
OF_NO_EFFECT = {
    "policy": {"pretrained", "config", "start_from", "device", "compile"},
    "reward": {"weight", "timeout_seconds", "judge", "reads", "instruction"},
    "judge": {"url", "concurrency", "cached_answers", "api_key_env"},
}
"""Settings that don't influence pictures and scores, or can't change during a run; a judge, and what a reward
reads, are looked at by themselves."""
ITERATION = 0
"""Training counts iterations from 1, so evaluation never draws the same noise."""


@dataclass(frozen=True)
class Evaluation:
    """Pictures and their scores."""

    prompts: Sequence[str]
    """The prompt of each picture."""
    media: Media
    rewards: dict[str, FloatArray]
    """Reward -> its scores, float64 [n]."""

    @cached_property
    def means(self) -> dict[str, float]:
        """Mean of each reward; where prompts have several samples, the mean of their `diversity` too."""
        return means_of(self.prompts, [self.media], self.rewards)


def means_of(prompts: Sequence[str], media: Iterable[Media], rewards: Mapping[str, FloatArray]) -> dict[str, float]:
    """`Evaluation.means`, of leaves that come in several parts. They are looked at only if a prompt is there twice."""
    means = {name: float(values.mean()) for name, values in rewards.items()}
    if repeats(prompts):
        looks = chain.from_iterable(part.looks() for part in media)
        means["diversity"] = float(np.mean(list(_diversities(prompts, looks))))
    return means


def repeats(prompts: Sequence[str]) -> bool:
    """Whether a prompt is there more than once."""
    return len(set(prompts)) < len(prompts)


def _diversities(prompts: Sequence[str], looks: Iterable[Pictures]) -> Iterator[float]:
    """The diversity of every prompt with several pictures. Sums of pictures are kept until a prompt's last one: samples
    of a prompt follow each other, so those of one prompt at a time."""
    counts, begun = Counter(prompts), dict[str, Diversity]()
    for prompt, look in zip(prompts, looks, strict=True):
        if counts[prompt] > 1:
            own = begun.setdefault(prompt, Diversity())
            own.add(look[None])
            if own.pictures == counts[prompt]:
                yield begun.pop(prompt).value()


def sampled_prompts(prompts: Sequence[str], settings: RunSettings) -> list[str]:
    """The prompt of every picture of an evaluation: each as often as it is sampled."""
    return [prompt for prompt in prompts for _ in range(settings.evaluation.samples)]


def evaluation_steps(settings: RunSettings) -> int:
    """Denoising steps of an evaluation."""
    return settings.evaluation.steps or settings.schedule.build().grid_steps


def evaluation_tasks(settings: RunSettings, prompts: Sequence[str], version: int) -> list[Task]:
    """The tasks of an evaluation, each with as many pictures as a training task has leaves.

    `prompts` has one for every picture. The start of picture i depends on `evaluation.seed` and i alone.
    """
    size = min(settings.rollout.max_batch_rows, settings.rollout.trees_per_task * settings.schedule.build().leaves)
    schedule, evaluation = ode_schedule(evaluation_steps(settings)), settings.evaluation
    cut = tasks(ITERATION, prompts, size, schedule, evaluation.seed, version, evaluation.guidance_scale)
    return [replace(task, latents=reads_latents(settings.rewards)) for task in cut]


def guided(settings: RunSettings) -> PolicySettings:
    """The policy's settings with the guidance of evaluations."""
    scale = settings.evaluation.guidance_scale
    return settings.policy if scale is None else settings.policy.model_copy(update={"guidance_scale": scale})


def made_with(settings: RunSettings, prompts: Sequence[str]) -> dict[str, str]:
    """Reward -> a short name of everything that its scores depend on besides the weights: scores with equal names can
    be compared.

    `prompts` has one for every picture.
    """
    pictures = {
        "prompts": [identity(prompt) for prompt in prompts],
        "seed": settings.evaluation.seed,
        "steps": evaluation_steps(settings),
        "policy": guided(settings).model_dump(mode="json", exclude=OF_NO_EFFECT["policy"]),
        "latents": settings.rollout.latents_precision,
    }
    scorers = {
        name: reward.model_dump(mode="json", exclude=OF_NO_EFFECT["reward"])
        | {"url": reward.url is not None}  # a service may move
        | (
            {"judge": judge.model_dump(mode="json", exclude=OF_NO_EFFECT["judge"], exclude_none=True)}
            if (judge := reward.judge)
            else {}
        )
        | ({"reads": reward.reads} if reward.reads != "media" else {})
        for name, reward in settings.rewards.items()
    }
    return {name: short_name([pictures, name, scorer]) for name, scorer in scorers.items()}


def _asked(judge: JudgeSettings) -> dict[str, Any]:
    return judge.model_dump(mode="json", exclude=OF_NO_EFFECT["judge"], exclude_none=True)


def evaluation_file(line: Mapping[str, Any]) -> str:
    """The file with the pictures of an evaluation that a line of evaluations.jsonl tells of, within the run folder."""
    way = f"-{short_name(line[MADE_WITH])}" if MADE_WITH in line else ""
    return f"evaluations/iteration-{line['iteration']:06d}{way}.safetensors"


def weights_of_best(settings: RunSettings) -> dict[str, float]:
    """Reward -> its weight in what the best evaluation is chosen by."""
    best = settings.checkpoint.keep_best
    if best and best.reward:
        return {best.reward: 1.0}
    return {name: reward.weight for name, reward in settings.rewards.items() if reward.weight}


def comparable(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of evaluations that can be compared with the last: they have its rewards, made in the same way."""
    last = lines[-1].get(MADE_WITH, {}).items() if lines else ()
    return [line for line in lines if last <= line.get(MADE_WITH, {}).items()]


def short_name(content: Any) -> str:
    """Eight digits that tell plain data from other data."""
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def evaluate(
    worker: RolloutWorker,
    scorers: Scorers,
    settings: RunSettings,
    prompts: Sequence[str],
    progress: Callable[[float], None] = lambda share: None,
) -> Evaluation:
    """Sample the prompts with the `ode` kernel and score them by all rewards of the run."""
    prompts = sampled_prompts(prompts, settings)
    media: list[Media] = []
    rewards: dict[str, list[FloatArray]] = {name: [] for name in settings.rewards}
    for task in evaluation_tasks(settings, prompts, worker.version):
        leaves = joined([part.media for part in worker.sample(task)])
        reply = scorers.score(ScoreRequest(leaves, task.prompts, list(rewards)))
        media.append(leaves.read("media"))
        for name, values in rewards.items():
            values.append(reply.scores[name])
        progress((task.trees[-1] + 1) / len(prompts))
    return Evaluation(prompts, joined(media), {name: np.concatenate(v) for name, v in rewards.items()})
