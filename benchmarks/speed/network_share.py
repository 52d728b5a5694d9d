"""How much of sampling and learning is the network: an iteration's CPU seconds beside those of its network calls alone.

One thread, no rewards. Both take turns, so that their ratio holds on a busy machine too.

    python -m branchgrpo.benchmarks.speed.network_share --out build/bench
"""

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from ...cluster.run.cuts import training_tasks, windows
from ...learner.learner import Learner
from ...proto.recipe import SHIPPED, load_recipe
from ...proto.settings import RunSettings
from ...proto.tree import Conditioning, Tree
from ...rollout_workers.policies.base import trainable
from ...rollout_workers.policies.load import load_policy
from ...rollout_workers.worker import RolloutWorker
from ..support.report import OUT, Out, Rounds, report_path, write_report

RECIPES = ("glyphs", "shapes")
METHODS = {
    "dance_grpo": ("schedule={method: dance_grpo, steps: 16, group: 16, eta: 0.7}", "advantage.normaliser=group"),
    "branch_grpo": (
        "schedule={method: branch_grpo, steps: 16, splits: {0: 2, 3: 2, 6: 2, 9: 2}, sibling_spread: 4.0, eta: 0.7}",
    ),
}
PHASES = ("sampling", "learning")


@dataclass
class Calls:
    """The calls of a policy's network and its decoder while they are recorded."""

    velocity: list[tuple[torch.Tensor, torch.Tensor, Conditioning]] = field(default_factory=list)
    decode: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    @contextmanager
    def of(cls, policy: Any) -> Iterator["Calls"]:
        """Record the calls of `policy` within the block."""
        calls, own = cls(), (policy.velocity, policy.decode)

        def velocity(latents: torch.Tensor, sigma: torch.Tensor, conditioning: Any, network: Any = None) -> Any:
            calls.velocity.append((latents, sigma, conditioning))
            return own[0](latents, sigma, conditioning, network)

        def decode(latents: torch.Tensor) -> torch.Tensor:
            calls.decode.append(latents)
            return own[1](latents)

        policy.velocity, policy.decode = velocity, decode
        try:
            yield calls
        finally:
            policy.velocity, policy.decode = own

    @property
    def rows(self) -> int:
        """Rows that went through the network."""
        return sum(len(latents) for latents, *_ in self.velocity)


class Bench:
    """A recipe's iterations, and their network calls alone with a second copy of the policy."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.policy, self.alone = (load_policy(settings.policy) for _ in range(2))
        self.learner = Learner(self.policy, settings)
        self.worker = RolloutWorker(self.policy, settings.rollout)
        self.optimizer = torch.optim.AdamW(
            trainable(self.alone.network).values(), lr=settings.learner.optimizer.learning_rate
        )
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.rows = dict.fromkeys(PHASES, 0)

    def round(self, number: int, prompts: Sequence[str]) -> None:
        """One iteration, and beside each of its phases the same calls alone."""
        schedule, version = self.settings.schedule.build(), self.learner.version
        self.worker.embeddings.of(prompts)
        trees = [Tree(i, prompt, schedule) for i, prompt in enumerate(prompts)]
        with Calls.of(self.policy) as sampled:
            self._measure("sampling", lambda: self._sample(number, prompts, trees, version))
        self._measure("sampling, network alone", lambda: self._sample_alone(sampled))
        rng = np.random.default_rng(number)
        leaves = np.arange(schedule.first_node[-2], schedule.nodes)
        for tree in trees:
            tree.add_scores(leaves, {name: rng.random(len(leaves)) for name in self.settings.rewards})
        updates: list[Calls] = []
        self._measure("learning", lambda: self._learn(number, trees, updates))
        self._measure("learning, network alone", lambda: self._learn_alone(updates))
        self.worker.adopt(self.learner.publish())
        self.rows = {"sampling": sampled.rows, "learning": sum(update.rows for update in updates)}

    def share(self, phase: str) -> float:
        """The network's share of a phase: the median over rounds of ratios within a round."""
        pairs = zip(self.seconds[f"{phase}, network alone"], self.seconds[phase], strict=True)
        return statistics.median(alone / whole for alone, whole in pairs)

    def _measure(self, phase: str, work: Callable[[], None]) -> None:
        gc.collect()
        start = time.process_time()
        work()
        self.seconds[phase].append(time.process_time() - start)

    def _sample(self, number: int, prompts: Sequence[str], trees: Sequence[Tree], version: int) -> None:
        for task in training_tasks(self.settings, number, prompts, trees[0].schedule, version):
            for part in self.worker.sample(task):
                trees[part.tree].add(part)

    @torch.no_grad()
    def _sample_alone(self, calls: Calls) -> None:
        for inputs in calls.velocity:
            self.alone.velocity(*inputs)
        for latents in calls.decode:
            self.alone.decode(latents)

    def _learn(self, number: int, trees: Sequence[Tree], updates: list[Calls]) -> None:
        for window in windows(self.settings, number):
            with Calls.of(self.policy) as calls:
                self.learner.accumulate(window.of(trees.__getitem__))
            if window.trees[0] % self.settings.trees_per_update == 0:
                updates.append(Calls())
            updates[-1].velocity += calls.velocity
            if window.closes_update:
                self.learner.step()

    def _learn_alone(self, updates: Sequence[Calls]) -> None:
        weights = list(trainable(self.alone.network).values())
        for calls in updates:
            for inputs in calls.velocity:
                velocity = self.alone.velocity(*inputs)
                velocity.backward(torch.ones_like(velocity))
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()


def main(
    out: Out = OUT,
    rounds: Rounds = 5,
    recipe: Annotated[list[str] | None, typer.Option(help="A shipped recipe; may be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(METHODS)}; may be repeated.")] = None,
    setting: Annotated[list[str] | None, typer.Option(help="A setting to replace; may be repeated.")] = None,
) -> None:
    """Measure the network's share of sampling and learning."""
    path = report_path(out, "network_share")
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    table = Table("recipe", "method", "phase", "rows", "ms a row", "network's share", title=f"medians of {rounds}")
    for name in recipe or RECIPES:
        for chosen in method or METHODS:
            overrides = [*METHODS[chosen], "learner.skip_zero_advantage=false", *(setting or ())]
            settings = load_recipe(SHIPPED / f"{name}.yaml", overrides)
            bench = Bench(settings)
            texts = settings.prompts.train.read_text().splitlines()[: settings.prompts.per_iteration]
            for number in range(1, rounds + 2):
                bench.round(number, texts)
                if number == 1:  # to warm up
                    bench.seconds.clear()
            for phase in PHASES:
                spent, rows = statistics.median(bench.seconds[phase]), bench.rows[phase]
                share = bench.share(phase)
                report[f"{name}, {chosen}, {phase}"] = {"cpu_seconds": spent, "rows": rows, "network_share": share}
                table.add_row(name, chosen, phase, str(rows), f"{spent / rows * 1e3:.2f}", f"{share:.0%}")
    Console().print(table)
    write_report(path, {"torch": torch.__version__, "shares": report})


if __name__ == "__main__":
    typer.run(main)
