"""Whether pruning while sampling pays: a run whose trees are chosen from more roots than they keep.

Every prompt gets more candidate roots than its tree shall have. After some passes the clean states that the network
predicts are decoded and scored, and only the chosen candidates are sampled to the end: the best, or as many of the best
as of the worst. All ways make the same number of forward passes per iteration: what candidates cost, fewer roots save.

    python -m branchgrpo.benchmarks.learning.early_pruning shapes 'schedule={method: nft, steps: 8, group: 16}' \
        learner.objective=nft advantage.normaliser=group --candidates 22 --look 4 --reward shapes_exact

Finished runs are kept in `--out`, and the same command makes those that are missing.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from ...cluster.run.evaluation import short_name
from ...cluster.run.folder import load_settings
from ...cluster.run.in_process import InProcessLoop
from ...cluster.run.planner import Plan, Planner
from ...cluster.run.prompt_focus import training_reward
from ...cluster.run.prompt_order import training_and_held_out
from ...cluster.study.statistics import mean
from ...proto.media import Media
from ...proto.schedule import IntArray, Schedule, Step
from ...proto.scoring import ScoreRequest
from ...proto.settings import RunSettings
from ...proto.tree import SampledPart, Task
from ...rollout_workers.worker import RolloutWorker
from ..support.report import OUT, Out, report_path, write_report
from ..support.scored_trees import Floats, chosen_reward

Choice = Literal["none", "best", "spread"]
Score = Callable[[Media, Sequence[str]], Floats]
"""The trained reward of pictures for their prompts, float64 [n]."""
Run = dict[str, Any]
"""What `learn` found."""


@dataclass(frozen=True)
class Pruning:
    """The candidates of a tree, and those that are kept."""

    choice: Choice
    candidates: int
    look: int
    """Steps that all candidates take: the prediction of the last one's network pass is scored."""
    kept: int

    @classmethod
    def within(cls, schedule: Schedule, choice: Choice, candidates: int, look: int) -> "Pruning":
        """What makes as many passes as the trees of a schedule. Raises ValueError if no number of roots does."""
        if not 0 < look < (steps := len(schedule.steps)):
            raise ValueError(f"look is {look}; of {steps} steps, candidates can take 1 to {steps - 1}")
        nodes = replace(schedule, roots=1).nodes_per_depth
        before, after = sum(nodes[:look]), sum(nodes[look:-1])
        left = schedule.forward_passes - candidates * before
        if left % after or not 2 <= left // after < candidates:
            raise ValueError(
                f"candidates is {candidates}; with {before} passes for each, {left} of a tree's "
                f"{schedule.forward_passes} are left, which must be {after} for each of 2 to {candidates - 1} roots"
            )
        return cls(choice, candidates, look, left // after)

    def chosen(self, scores: Floats) -> IntArray:
        """The candidates of one tree that are kept, ascending, int64 [kept]. Of equal scores the first counts as the
        lower."""
        order = np.argsort(scores, kind="stable")
        worst = self.kept // 2 if self.choice == "spread" else 0
        return np.sort(np.concatenate([order[:worst], order[len(order) - self.kept + worst :]]))


class PruningWorker(RolloutWorker):
    """Samples trees whose roots are chosen. A candidate is a tree of one root, with noise of its own.

    The chosen ones are sampled again from their start, to the same states: nothing else is shared with the look.
    """

    def __init__(self, like: RolloutWorker, pruning: Pruning, score: Score) -> None:
        """`like` is the worker in whose place it samples."""
        super().__init__(like.policy, like.settings, like.version)
        self.pruning, self.score = pruning, score

    def sample(self, task: Task) -> Iterator[SampledPart]:
        """Sample a task's trees from chosen roots, or an evaluation's trees as every worker does."""
        if not task.iteration:
            yield from super().sample(task)
            return
        chosen = [self.pruning.chosen(scores) for scores in self.look(task)]
        alone = candidates(task, self.pruning.candidates, chosen)
        numbers = {tree: number for number, tree in enumerate(alone.trees)}
        for part in super().sample(alone):
            tree, root = divmod(numbers[part.tree], self.pruning.kept)
            nodes, leaves = (within(task.schedule, own, root) for own in (part.nodes, part.leaves))
            yield replace(part, tree=task.trees[tree], nodes=nodes, leaves=leaves, diversity=None)

    def look(self, task: Task) -> Floats:
        """Mean score of the clean states predicted below every candidate, float64 [trees, candidates]."""
        schedule, count = task.schedule, self.pruning.candidates
        taken = schedule.steps[: self.pruning.look - 1]
        rest = schedule.grid_steps - int(schedule.levels[len(taken)])
        # One Euler step to the end leads to the clean state that its network pass predicts.
        early = replace(schedule, steps=(*taken, Step(stride=rest)))
        task = candidates(replace(task, schedule=early), count, [np.arange(count)] * len(task.trees))
        scores = dict.fromkeys(task.trees, 0.0)
        for part in super().sample(task):
            prompt = task.prompts[task.trees.index(part.tree)]
            scores[part.tree] += float(self.score(part.media, [prompt] * len(part.media)).sum())
        return np.array(list(scores.values())).reshape(-1, count) / task.schedule.leaves


def candidates(task: Task, count: int, chosen: Sequence[IntArray]) -> Task:
    """Some of the `count` candidates of each of a task's trees, as trees of one root."""
    trees = [tree * count + int(own) for tree, of_tree in zip(task.trees, chosen, strict=True) for own in of_tree]
    prompts = [prompt for prompt, of_tree in zip(task.prompts, chosen, strict=True) for _ in of_tree]
    alone = replace(task.schedule, roots=1)
    return replace(task, trees=tuple(trees), prompts=tuple(prompts), schedule=alone, recorded=0, decoded=None)


def within(schedule: Schedule, nodes: IntArray, root: int) -> IntArray:
    """Numbers of the nodes of a tree of one root, int64 [n], where they stand below a root of a whole tree."""
    alone = replace(schedule, roots=1)
    depth, first = alone.depth[nodes], np.array(alone.first_node)
    return np.array(schedule.first_node)[depth] + root * np.array(alone.nodes_per_depth)[depth] + nodes - first[depth]


class PruningPlanner(Planner):
    """Plans trees of as many roots as are kept."""

    def __init__(self, settings: RunSettings, prompts: Sequence[str], kept: int) -> None:
        super().__init__(settings, prompts)
        self._kept = kept

    def plan(self, number: int) -> Plan:
        plan = super().plan(number)
        return replace(plan, schedule=replace(plan.schedule, roots=self._kept))


def pruning_loop(settings: RunSettings, prompts: Sequence[str], pruning: Pruning) -> InProcessLoop:
    """A loop whose trees are chosen, or with the choice `none` an ordinary one."""
    loop = InProcessLoop(settings, prompts)

    def score(media: Media, texts: Sequence[str]) -> Floats:
        request = ScoreRequest(media, texts, list(settings.training_rewards))
        return training_reward(settings, loop.scorers.score(request).scores)

    if pruning.choice != "none":
        loop.planner = PruningPlanner(settings, prompts, pruning.kept)
        loop.worker = PruningWorker(loop.worker, pruning, score)
    return loop


def learn(settings: RunSettings, pruning: Pruning, iterations: int, console: Console) -> Run:
    """Make a run: its evaluations, and what an iteration costs."""
    prompts, held_out = training_and_held_out(settings)
    evaluations: dict[int, dict[str, float]] = {}
    seconds, rows = 0.0, 0
    with closing(pruning_loop(settings, prompts, pruning)) as loop:
        for number in range(1, iterations + 1):
            start = time.process_time()
            rows += sum(update.rows for update in loop.iterate(number).updates)
            seconds += time.process_time() - start
            if number % settings.evaluation.every == 0 or number == iterations:
                evaluations[number] = loop.evaluate(held_out).means
                console.print(f"{pruning.choice}, seed {settings.seed}, iteration {number}:", evaluations[number])
    return {"rows": rows / iterations, "cpu_seconds": seconds / iterations, "evaluations": evaluations}


def kept_run(settings: RunSettings, pruning: Pruning, iterations: int, out: Path, console: Console) -> Run:
    """A run that is made if no file in `out` holds it."""
    own = vars(pruning).items() if pruning.choice != "none" else ()
    path = report_path(out, f"early_pruning-{short_name([settings.model_dump(mode='json'), iterations, *own])}")
    if not path.exists():
        write_report(path, learn(settings, pruning, iterations, console))
    return dict(json.loads(path.read_text()))


def table_of(runs: Mapping[Choice, Sequence[Run]], reward: str, title: str) -> Table:
    """Held-out rewards by choice, means over seeds, and the differences to no choice with their intervals."""
    after = list(runs["none"][0]["evaluations"])
    table = Table("roots", *after, "mean above none", "last above none", "rows", "CPU seconds", title=title)
    values = {
        choice: np.array([[run["evaluations"][number][reward] for number in after] for run in own])
        for choice, own in runs.items()
    }
    for choice, own in runs.items():
        above = values[choice] - values["none"]
        differences = [mean(each).text("{:.3f}".format) for each in (above.mean(axis=1), above[:, -1])]
        costs = [f"{np.mean([run[cost] for run in own]):.1f}" for cost in ("rows", "cpu_seconds")]
        table.add_row(choice, *map("{:.3f}".format, values[choice].mean(axis=0)), *differences, *costs)
    return table


def main(
    target: Annotated[Path, typer.Argument(help="A recipe, or the name of a shipped one.")],
    override: Annotated[list[str] | None, typer.Argument(help="Settings to replace: key=value.")] = None,
    candidates: Annotated[int, typer.Option(min=3, help="Candidate roots of each prompt.")] = 22,
    look: Annotated[int, typer.Option(min=1, help="Steps before the choice.")] = 4,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations of every run.")] = 16,
    seed: Annotated[list[int] | None, typer.Option(help="A seed; give it for each. Default: 0, 1 and 2.")] = None,
    reward: Annotated[str | None, typer.Option(help="The held-out reward; default: the first of the recipe.")] = None,
    out: Out = OUT,
) -> None:
    """Train with roots that are chosen early, and without, at equal forward passes.

    Example: python -m branchgrpo.benchmarks.learning.early_pruning shapes 'schedule={method: nft, steps: 8, group: 16}'
    learner.objective=nft advantage.normaliser=group --candidates 22 --look 4
    """
    path, console = report_path(out, "early_pruning"), Console()
    settings = load_settings(target, override or ())
    reward = chosen_reward(settings, reward)
    if settings.learner.keep_graph or settings.learner.trust_region != "clip":
        raise typer.BadParameter(
            "learner.keep_graph must be false and learner.trust_region clip: candidates have noise "
            "and numbers of their own",
            param_hint="override",
        )
    schedule = settings.schedule.build(1, settings.seed)
    try:
        ways = [Pruning.within(schedule, choice, candidates, look) for choice in get_args(Choice)]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="candidates") from error
    runs: dict[Choice, list[Run]] = {way.choice: [] for way in ways}
    for number in seed or [0, 1, 2]:
        for way in ways:
            seeded = settings.model_copy(update={"seed": number})
            runs[way.choice].append(kept_run(seeded, way, iterations, out, console))
    passes = settings.prompts.per_iteration * schedule.forward_passes
    trees = f"{schedule.roots} roots, or {ways[0].kept} of {candidates} chosen after {look} steps"
    title = f"{reward} after iterations of {passes} forward passes; trees of {trees}"
    console.print(table_of(runs, reward, title))
    write_report(path, {"title": title, "reward": reward, "runs": runs})


if __name__ == "__main__":
    typer.run(main)
