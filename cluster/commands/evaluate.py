"""Evaluations on demand: of a recipe's policy, of a run's checkpoints, or of two policies against each other."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as ProgressBar
from rich.table import Table

from ...proto.atomic_files import whole
from ...proto.errors import InputError
from ...proto.settings import RunSettings
from ...reward_service.scorers import Scorers
from ...rollout_workers.policies.base import Policy
from ...rollout_workers.policies.load import check_pictures, find_policy, load_policy
from ...rollout_workers.worker import RolloutWorker
from ..on_ray.placement import reward_pools
from ..plan.sizes import sizes_here
from ..run import pictures
from ..run.evaluation import Evaluation, evaluate, evaluation_steps
from ..run.folder import RunFolder, WhichCheckpoint, load_settings
from ..run.leaves import save_leaf
from ..run.prompt_order import training_and_held_out
from ..run.start_point import find_start
from ..run.trained import policy_with, trained_weights

Progress = Callable[[float], None]


def evaluate_command(
    target: Path,
    overrides: Sequence[str],
    which: Sequence[WhichCheckpoint] | None,
    ema: bool,
    against: Path | None,
    out: Path | None,
    console: Console,
) -> None:
    """Evaluate the policies of a run or recipe, or one `against` another; show and write what comes of it."""
    settings = sizes_here(load_settings(target, overrides))
    subjects = find_subjects(target, settings, which, ema)
    if against is not None:
        if len(subjects) != 1:
            raise InputError(f"--against compares two policies, and {len(subjects)} of {target} are named; name one")
        other = opponent(against, settings, overrides)
        subjects = [replace(subjects[0], label=f"{settings.name}, {subjects[0].label}"), other]
        if subjects[0].label == subjects[1].label:
            subjects[1] = replace(subjects[1], label=f"{subjects[1].label} of {against}")
    for subject in subjects:
        if subject.weights:
            console.print(f"{subject.label}: {subject.weights}", markup=False, highlight=False, soft_wrap=True)
    with ProgressBar(disable=not console.is_terminal, transient=True, console=console) as bar:
        task = bar.add_task("sampling and scoring", total=1.0)
        evaluations = evaluate_all(subjects, lambda share: bar.update(task, completed=share))
    show(subjects, evaluations, console)
    if against is not None:
        show_wins(subjects, evaluations, console)
    if out:
        write(subjects, evaluations, out, against=against is not None)
        console.print(f"pictures and scores: {out}", markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Subject:
    """A policy that is evaluated."""

    label: str
    settings: RunSettings
    weights: Path | None
    """File of the trained weights; None for a policy as its recipe has it."""

    def load(self) -> Policy:
        """The policy with its weights; a LoRA that it starts from is merged."""
        if self.weights is None:
            return load_policy(find_start(self.settings).policy.merged)
        return policy_with(self.settings, self.weights)


def find_subjects(
    target: Path, settings: RunSettings, which: Sequence[WhichCheckpoint] | None, ema: bool
) -> list[Subject]:
    """The policies of a run (of the checkpoints named, or with None of all), or the one of a recipe.

    Raises InputError for checkpoints that aren't there, or that a recipe can't have.
    """
    if not target.is_dir():
        if ema or which != ["newest"]:
            raise InputError(
                f"{target} is a recipe, which has no checkpoints; omit --ema, --best, --all and --iteration"
            )
        return [Subject("untrained", settings, None)]
    folder = RunFolder.open(target)
    if which is not None:
        found = list(dict.fromkeys(trained_weights(folder, one, ema=ema) for one in which))
    else:
        if not (every := folder.checkpoints()):
            raise InputError(f"{folder.path} holds no checkpoint yet")
        found = [trained_weights(folder, one, ema=ema) for one in every]
    return [Subject(f"iteration {number}", settings, weights) for number, weights in found]


def opponent(target: Path, settings: RunSettings, overrides: Sequence[str] = ()) -> Subject:
    """The policy of another run or recipe, evaluated as `settings` say: with their prompts, noise, steps, rewards.

    Guidance is its own, unless the `overrides` of the evaluation say otherwise.
    """
    own = load_settings(target, [override for override in overrides if override.startswith("evaluation")])
    size = {name: getattr(settings.policy, name) for name in ("height", "width", "frames", "seconds")}
    same = settings.model_copy(
        update={
            "policy": own.policy.model_copy(update=size),
            "learner": own.learner,
            "evaluation": settings.evaluation.model_copy(
                update={"steps": evaluation_steps(settings), "guidance_scale": own.evaluation.guidance_scale}
            ),
        }
    )
    (subject,) = find_subjects(target, same, ["newest"], False)
    return Subject(f"{own.name}, {subject.label}", same, subject.weights)


def evaluate_all(subjects: Sequence[Subject], progress: Progress) -> list[Evaluation]:
    """An evaluation of each policy on the held-out prompts, in as many threads as its run has."""
    settings = subjects[0].settings
    _, prompts = training_and_held_out(settings)
    if not prompts:
        raise InputError(
            "prompts.held_out is null; name a file of prompts to evaluate on, or give prompts.held_out_count"
        )
    for subject in subjects:  # before the first is sampled
        find_policy(subject.settings.policy)
        check_pictures(subject.settings, prompts)
    scoring = use_threads(settings)
    scorers = Scorers(settings.rewards, scoring, pools=settings.pools.rewards)
    evaluations = []
    for number, subject in enumerate(subjects):
        worker = RolloutWorker(subject.load(), subject.settings.rollout)

        def within(share: float, before: int = number) -> None:
            progress((before + share) / len(subjects))

        evaluations.append(evaluate(worker, scorers, subject.settings, prompts, within))
    return evaluations


def use_threads(settings: RunSettings) -> int | None:
    """Have torch sample with as many threads as a process of the run; returns the number to score with."""
    sampling, scoring = _threads(settings)
    if sampling:
        torch.set_num_threads(sampling)
    return scoring


def _threads(settings: RunSettings) -> tuple[int | None, int | None]:
    """Threads to sample and to score with, as a process of the run has them, but no more than there are cores here;
    None leaves it to the libraries.
    """
    if settings.execution == "in_process":
        return settings.threads, settings.threads
    pools, cores = settings.pools, psutil.cpu_count() or 1
    sampling = pools.learner if settings.placement == "colocated" else pools.rollout_workers
    scoring = max(settings.threads_of(pool) for pool in reward_pools(settings).values())
    return min(settings.threads_of(sampling), cores), min(scoring, cores)


def show(subjects: Sequence[Subject], evaluations: Sequence[Evaluation], console: Console) -> None:
    """The means as a table: a line for each policy."""
    names = list(dict.fromkeys(name for evaluation in evaluations for name in evaluation.means))
    table = Table("policy", *names, title=f"means over {len(set(evaluations[0].prompts))} held-out prompts")
    for subject, evaluation in zip(subjects, evaluations, strict=True):
        means = evaluation.means
        table.add_row(escape(subject.label), *(f"{means[name]:.4f}" if name in means else "" for name in names))
    console.print(table)


def write(subjects: Sequence[Subject], evaluations: Sequence[Evaluation], out: Path, *, against: bool) -> None:
    """The pictures with their scores, and a grid of them, in the folder `out`; of several, in a folder each.

    With `against`, what `write_wins` writes too.
    """
    with whole(out) as temporary:
        for subject, evaluation in zip(subjects, evaluations, strict=True):
            own = temporary if len(subjects) == 1 else temporary / subject.label.replace(" ", "-").replace("/", "-")
            (own / "pictures").mkdir(parents=True)
            lines = []
            for i, (prompt, leaf) in enumerate(zip(evaluation.prompts, evaluation.media, strict=True)):
                file = save_leaf(own / "pictures" / f"{i:06d}", leaf)
                scores = {reward: float(values[i]) for reward, values in evaluation.rewards.items()}
                lines.append(json.dumps({"prompt": prompt, "picture": f"pictures/{file.name}", **scores}))
            (own / "scores.jsonl").write_text("\n".join(lines) + "\n")
            pictures.labelled_grid(own / "grid.png", evaluation.media[:96], captions(evaluation)[:96], columns=8)
        if against:
            write_wins(subjects, evaluations, temporary)


def captions(evaluation: Evaluation) -> list[str]:
    """The caption of every picture: its prompt and its scores."""
    return [
        prompt + "\n" + ", ".join(f"{name} {values[i]:.3g}" for name, values in evaluation.rewards.items())
        for i, prompt in enumerate(evaluation.prompts)
    ]


# Two against each other ---------------------------------------------------------------------------------------------


def wins(one: Evaluation, other: Evaluation, reward: str) -> dict[str, tuple[int, int, int]]:
    """Prompt -> how many of its pictures score higher with one policy, equal, and higher with the other."""
    counted: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for prompt, difference in zip(one.prompts, one.rewards[reward] - other.rewards[reward], strict=True):
        counted[prompt][1 - int(np.sign(difference))] += 1
    return {prompt: (a, b, c) for prompt, (a, b, c) in counted.items()}


def show_wins(subjects: Sequence[Subject], evaluations: Sequence[Evaluation], console: Console) -> None:
    """Print, per reward, the shares of pictures that score higher with one policy, equal, and higher with the other."""
    first, second = (escape(subject.label) for subject in subjects)
    table = Table("reward", first, "alike", second, title="share of pictures with the higher score")
    for reward in evaluations[0].rewards:
        totals = np.sum(list(wins(evaluations[0], evaluations[1], reward).values()), axis=0)
        table.add_row(reward, *(f"{share:.1%}" for share in totals / totals.sum()))
    console.print(table)


def write_wins(subjects: Sequence[Subject], evaluations: Sequence[Evaluation], out: Path) -> None:
    """The wins of every prompt by reward, and the pictures side by side, in the folder `out`."""
    first, second = (subject.label for subject in subjects)
    counted = {reward: wins(evaluations[0], evaluations[1], reward) for reward in evaluations[0].rewards}
    with open(out / "wins.jsonl", "w", encoding="utf-8") as file:
        for prompt in dict.fromkeys(evaluations[0].prompts):
            line = {name: dict(zip((first, "alike", second), by[prompt], strict=True)) for name, by in counted.items()}
            file.write(json.dumps({"prompt": prompt, **line}) + "\n")
    pairs = [leaf for both in zip(*(e.media for e in evaluations), strict=True) for leaf in both]
    labels = [label for both in zip(*map(captions, evaluations), strict=True) for label in both]
    pictures.labelled_grid(out / "side_by_side.png", pairs[:96], labels[:96], columns=4)
