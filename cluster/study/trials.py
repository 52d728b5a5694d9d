"""The runs of a study: which there are, what has become of them, and which values tuning has chosen."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np

from ...proto.errors import InputError
from ...proto.settings import RunSettings
from ..run.changes import find_changes
from ..run.driver_lock import driver_of
from ..run.evaluation import comparable, short_name
from ..run.folder import RunFolder
from ..run.state import END_STATES, read_state
from .file import Budget, Candidate, Study, sized_as
from .timing import seconds_per_iteration

OF_NO_CONSEQUENCE = re.compile(r"(iterations|checkpoint|logging|pools|evaluation\.(rewards|every))\b")
"""Settings that a study may change without another result of the iterations that were made."""


@dataclass(frozen=True)
class Trial:
    """A run of a study."""

    variant: str
    values: Mapping[str, Any]
    """Tuned setting -> its value."""
    settings: RunSettings

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.settings.runs / self.settings.name)

    @property
    def state(self) -> str:
        """State that the run's state.json has; `lost` without a driver, `not started` without a folder."""
        state = str(read_state(self.folder.path).get("state", "not started"))
        if state in END_STATES:
            return state
        seen = driver_of(self.folder.path)
        return "running" if seen and seen.alive else state if state == "not started" else "lost"

    @property
    def finished(self) -> bool:
        """Whether the run has all iterations of its budget, and has ended well."""
        last = next(reversed(self.folder.lines("metrics")), {"iteration": 0})
        return self.state == "finished" and last["iteration"] >= self.settings.iterations

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do: the run is finished, or it would fail again."""
        return self.state == "failed" or self.finished

    def must_continue(self) -> None:
        """Raises InputError if the run's folder holds one with other settings."""
        if not (self.folder.path / "recipe.yaml").is_file():
            return
        for change in find_changes(self.folder.settings, sized_as(self.settings, self.folder.path)):
            if not OF_NO_CONSEQUENCE.match(change.setting):
                raise InputError(
                    f"the study has other settings than {self.folder.path} ({change}); remove that folder, or give the "
                    "variant another name"
                )


def trials(study: Study) -> list[Trial]:
    """The runs that the report is about, of all variants whose values are chosen."""
    return [
        _trial(study, variant, candidate, seed, study.file.budget, "runs")
        for variant in study.variants
        if (candidate := chosen(study, variant))
        for seed in study.file.seeds
    ]


def must_continue(study: Study) -> None:
    """Raises InputError if a folder holds a run with other settings than the study has: one of those that are compared,
    or one by which values were chosen."""
    tuned = (run for variant in study.variants for _, runs in tuning_trials(study, variant) for run in runs)
    for run in chain(tuned, trials(study)):
        run.must_continue()


def tuning_trials(study: Study, variant: str) -> Iterator[tuple[Candidate, list[Trial]]]:
    """The runs for each candidate of a variant; none if it has only one."""
    tuning, candidates = study.file.tuning, study.variants[variant]
    if not tuning or len(candidates) < 2:
        return
    for candidate in candidates:
        budget = tuning.budget or study.file.budget
        yield candidate, [_trial(study, variant, candidate, seed, budget, "tuning") for seed in tuning.seeds]


def chosen(study: Study, variant: str) -> Candidate | None:
    """The candidate with the best `validation_score`; None until all runs of all candidates have ended."""
    if len(study.variants[variant]) == 1:
        return study.variants[variant][0]
    scores = []
    for candidate, runs in tuning_trials(study, variant):
        if not all(run.ended for run in runs):
            return None
        scores.append((validation_score(study, runs), candidate))
    best, candidate = max(scores, key=lambda scored: scored[0])
    return candidate if np.isfinite(best) else None


def validation_score(study: Study, runs: list[Trial]) -> float:
    """Mean validation reward over all evaluations after the first, and over seeds: it is high for what learns soon and
    stays there. -inf if one of the runs has failed."""
    if any(run.state != "finished" for run in runs):
        return -np.inf
    means = []
    for run in runs:
        lines = comparable(run.folder.lines("evaluations"))
        means.append(np.mean([line[study.file.reward] for line in lines if line["iteration"] > 0]))
    return float(np.mean(means))


def _trial(study: Study, variant: str, candidate: Candidate, seed: int, budget: Budget, folder: str) -> Trial:
    settings, name = candidate.settings, variant
    if folder == "tuning" and candidate.validation:
        settings, name = candidate.validation, f"{variant}-{_label(candidate.values)}"
    own = {"name": f"{name}-seed{seed}", "runs": study.folder / folder, "seed": seed, "resume": "auto"}
    settings = settings.model_copy(update=own)
    iterations = _iterations(study, settings, budget)
    return Trial(variant, candidate.values, settings.model_copy(update={"iterations": iterations}))


def _label(values: Mapping[str, Any]) -> str:
    label = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in values.items())
    return label if re.fullmatch(r"[A-Za-z0-9_.+-]{1,80}", label) else short_name(dict(values))


def _iterations(study: Study, settings: RunSettings, budget: Budget) -> int:
    """The iterations within a budget, at least one. Raises InputError for seconds that were not measured yet."""
    if counted := counted_iterations(settings, budget):
        return counted
    seconds = seconds_per_iteration(study, settings)
    if seconds is None:
        raise InputError("budget.seconds needs the measured seconds per iteration; run the study without --report")
    return max(1, int((budget.seconds or 0.0) / seconds))


def counted_iterations(settings: RunSettings, budget: Budget) -> int | None:
    """The iterations within a budget, at least one; None for a budget of seconds."""
    if budget.forward_passes:
        if not settings.schedule.varies:
            passes = settings.prompts.per_iteration * settings.schedule.build(1, settings.seed).forward_passes
            return max(1, budget.forward_passes // passes)
        spent = 0
        for iteration in count(1):
            schedule = settings.schedule.build(iteration, settings.seed)
            spent += settings.prompts.per_iteration * schedule.forward_passes
            if spent > budget.forward_passes:
                return max(1, iteration - 1)
    return budget.iterations
