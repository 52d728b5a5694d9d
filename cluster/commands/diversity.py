"""`branchgrpo diversity`: whether the leaves of trees are as diverse as samples that are drawn one by one."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress as ProgressBar
from rich.table import Table

from ...proto.atomic_files import whole
from ...proto.errors import InputError
from ...proto.methods import INDEPENDENT_SPREAD
from ...proto.schedule import Schedule
from ...proto.settings import RunSettings
from ...rollout_workers.diversity import Diversity
from ...rollout_workers.worker import RolloutWorker
from ..plan.sizes import sizes_here
from ..run.cuts import tasks
from ..run.evaluation import ITERATION
from ..run.folder import WhichCheckpoint, load_settings
from ..run.prompt_order import training_and_held_out
from ..study.mmd import Floats, PermutationTest, permutation_test
from ..study.statistics import mean
from .evaluate import Subject, find_subjects, use_threads

CELLS = 16
"""Maximum cells per side that pixels are averaged in."""
WITH_TOWERS = ("clip_score", "pick_score")
"""Rewards whose `pretrained` is a CLIP model."""
Pictures = npt.NDArray[np.uint8]
Features = Callable[[Pictures], Floats]


@dataclass(frozen=True)
class Result:
    """How the trees of one policy compare with samples that are drawn one by one."""

    policy: str
    starts: str
    """Whether the samples of a prompt share the starts of its tree, or each has its own."""
    test: PermutationTest
    trees: float
    """Diversity (`rollout_workers/diversity.py`) of the leaves of a tree, mean over prompts."""
    samples: float
    """Diversity of as many samples that are drawn one by one, mean over prompts."""


def diversity_command(
    target: Path,
    overrides: Sequence[str],
    which: Sequence[WhichCheckpoint],
    prompts: int,
    permutations: int,
    features: str | None,
    out: Path | None,
    console: Console,
) -> None:
    """Compare trees with sequential samples, for the start of a run and some checkpoints, or for a recipe's policy."""
    settings = sizes_here(load_settings(target, overrides))
    schedule = settings.schedule.build(1, settings.seed)
    if not schedule.splits:
        raise InputError("the schedule doesn't split, so there are no trees to compare; give splits in the command")
    subjects = find_subjects(target, settings, which, False)
    if target.is_dir():
        subjects = [Subject("start", settings, None), *subjects]
    train, held_out = training_and_held_out(settings)
    chosen = (held_out or train)[:prompts]
    name, describe = find_features(settings, features)
    with ProgressBar(disable=not console.is_terminal, transient=True, console=console) as bar:
        task = bar.add_task("sampling", total=3 * len(chosen) * len(subjects))
        results = [
            result
            for subject in subjects
            for result in compare(subject, chosen, schedule, describe, permutations, lambda: bar.advance(task))
        ]
    show(results, schedule, name, permutations, console)
    if out:
        write(results, chosen, schedule, name, permutations, out)
        console.print(f"results: {out}", markup=False, highlight=False, soft_wrap=True)


def find_features(settings: RunSettings, folder: str | None) -> tuple[str, Features]:
    """The features that pictures are compared by, and their name.

    Those of the CLIP model in a folder, else of a reward that is one, else pixels. No tokenizer is needed. Raises
    InputError if it is none.
    """
    of_rewards = [reward.pretrained for name, reward in settings.rewards.items() if name in WITH_TOWERS]
    if folder := folder or next((path for path in of_rewards if path), None):
        from ...reward_service.clip import load_picture_tower

        try:
            towers = load_picture_tower(folder)
        except InputError as error:
            raise InputError(
                f"the features are to be those of '{folder}', which isn't a CLIP model: {error}"
            ) from error
        return f"CLIP features ({folder})", lambda media: towers.pictures(media).double().cpu().numpy()
    return f"pixels, averaged in at most {CELLS} x {CELLS} cells", pooled_pixels


def pooled_pixels(media: Pictures) -> Floats:
    """Pixels from 0 to 1, averaged in at most 16 x 16 cells: float64 [n, features] of uint8 [n, height, width, 3]."""
    pixels = torch.from_numpy(media).permute(0, 3, 1, 2).double() / 255
    height, width = (min(CELLS, side) for side in pixels.shape[2:])
    return torch.nn.functional.adaptive_avg_pool2d(pixels, (height, width)).flatten(1).numpy()


def sequential(schedule: Schedule, *, shared: bool) -> Schedule:
    """The schedule of as many samples as a tree has leaves, drawn one by one in the same steps.

    They share the tree's starts up to the first noise, from which they are independent, or each has a start of its own.
    """
    steps = [replace(step, children=1) for step in schedule.steps]
    if not shared:
        return Schedule(tuple(steps), roots=schedule.leaves)
    noisy = next(i for i, step in enumerate(steps) if step.stochastic)
    steps[noisy] = replace(steps[noisy], children=schedule.leaves // schedule.roots)
    return replace(schedule, steps=tuple(steps), sibling_spread=INDEPENDENT_SPREAD)


def compare(
    subject: Subject,
    prompts: Sequence[str],
    schedule: Schedule,
    describe: Features,
    permutations: int,
    advance: Callable[[], None],
) -> list[Result]:
    """Compare a tree for every prompt with samples that share its starts, and with others; `advance` is called after
    each of the three."""
    settings, size = subject.settings, subject.settings.rollout.trees_per_task
    use_threads(settings)
    worker = RolloutWorker(subject.load(), settings.rollout)

    def sampled(shape: Schedule, seed: int, start_seed: int) -> tuple[list[Floats], float]:
        """The features of the leaves of every prompt, and the mean of their diversity."""
        features, spread = [], []
        for task in tasks(ITERATION, prompts, size, shape, seed, worker.version):
            parts = list(worker.sample(replace(task, start_seed=start_seed)))
            for tree in task.trees:
                looks = np.concatenate([part.media.looks() for part in parts if part.tree == tree])
                frames = looks.reshape(-1, *looks.shape[-3:])
                features.append(describe(frames).reshape(len(looks), -1))
                diversity = Diversity()
                diversity.add(looks)
                spread.append(diversity.value())
                advance()
        return features, float(np.mean(spread))

    first, second, third = ((settings.evaluation.seed + i) % 2**63 for i in range(3))
    leaves, of_trees = sampled(schedule, first, first)
    results = []
    for starts, shape, seed, start_seed in (
        ("the tree's", sequential(schedule, shared=True), second, first),
        ("their own", sequential(schedule, shared=False), third, third),
    ):
        samples, of_samples = sampled(shape, seed, start_seed)
        test = permutation_test(leaves, samples, permutations)
        results.append(Result(subject.label, starts, test, of_trees, of_samples))
    return results


def show(results: Sequence[Result], schedule: Schedule, features: str, permutations: int, console: Console) -> None:
    """The results as a table, a line for each."""
    count = len(results[0].test.mmd2)
    title = f"trees of {schedule.leaves} leaves against {schedule.leaves} sequential samples, {count} prompts"
    table = Table("policy", "starts of samples", "MMD² (95 %)", "p", "diversity: trees", "samples", title=title)
    for result in results:
        figures = mean(result.test.mmd2).text(lambda value: f"{value:.4f}"), f"{result.test.p:.4f}"
        table.add_row(result.policy, result.starts, *figures, f"{result.trees:.4f}", f"{result.samples:.4f}")
    console.print(table)
    console.print(f"Gaussian kernel, median heuristic per prompt, over {features}.", markup=False, highlight=False)
    console.print(
        f"p: of {permutations} exchanges of labels within prompts; smallest possible {1 / (1 + permutations):.4f}.",
        highlight=False,
    )


def write(
    results: Sequence[Result],
    prompts: Sequence[str],
    schedule: Schedule,
    features: str,
    permutations: int,
    out: Path,
) -> None:
    """Write diversity.json, the means and how they were made, and diversity.csv, a line per prompt."""
    comparisons = []
    for result in results:
        estimate = mean(result.test.mmd2)
        comparisons.append(
            {
                "policy": result.policy,
                "starts": result.starts,
                "mmd2": estimate.value,
                "mmd2_interval": [estimate.low, estimate.high] if len(prompts) > 1 else None,
                "p": result.test.p,
                "diversity_trees": result.trees,
                "diversity_samples": result.samples,
            }
        )
    made = {"kernel": "gaussian, median heuristic per prompt", "features": features, "permutations": permutations}
    spread = schedule.sibling_spread if np.isfinite(schedule.sibling_spread) else "inf"
    shape = {"leaves": schedule.leaves, "prompts": len(prompts), "sibling_spread": spread}
    with whole(out) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "diversity.json").write_text(
            json.dumps({**made, **shape, "comparisons": comparisons}, indent=2) + "\n"
        )
        lines = chain.from_iterable(
            (
                (result.policy, result.starts, prompt, value)
                for prompt, value in zip(prompts, result.test.mmd2.tolist(), strict=True)
            )
            for result in results
        )
        with open(folder / "diversity.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("policy", "starts", "prompt", "mmd2"), *lines])
