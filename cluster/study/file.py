"""The study file: a base recipe, variants of it, seeds, a budget and targets. All is checked before anything runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, product
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PositiveFloat, model_validator

from ...proto.errors import InputError
from ...proto.prompt import Prompt
from ...proto.prompts import read_prompts
from ...proto.recipe import load_variant, read_sections
from ...proto.settings import Amount, HomePath, PositiveInt, RunSettings, Seed, Settings
from ...proto.settings_errors import validated
from ..run.evaluation import made_with, sampled_prompts

TUNE = "tune"
"""Key beside a variant's settings: settings to tune, each with the values to try."""
OF_THE_STUDY = {"name": "variants", "runs": "--out", "seed": "seeds", "iterations": "budget", "resume": "the command"}
"""Settings that no variant may have, and what decides about them."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]
Overrides = dict[str, Any]


class Budget(Settings):
    """How long each run is: one of these."""

    iterations: PositiveInt | None = None
    """Number of iterations."""
    forward_passes: PositiveInt | None = None
    """Maximum number of the rollouts' forward passes."""
    seconds: PositiveFloat | None = None
    """Maximum seconds of its iterations, by the measured seconds per iteration of its variant. Not with execution
    `ray`, where nothing is measured before the runs."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for _, value in self) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}")
        return self


class Tuning(Settings):
    """How the settings under `tune` are chosen."""

    prompts: HomePath
    """Source of the validation prompts, which the runs that are tuned evaluate on, in place of `prompts.held_out`."""
    seeds: list[Seed] = Field(default=[1000], min_length=1)
    """Seeds of the runs for each value, none of them one of the study's."""
    budget: Budget | None = None
    """Budget of these runs. null: the study's."""


class StudyFile(Settings):
    """A study, as its file describes it."""

    base: str
    """Recipe that all variants start from: a path from the study's folder, or the name of a shipped recipe."""
    common: Overrides = Field(default={})
    """Settings of all variants, as in a recipe with a `base`."""
    variants: Annotated[dict[Name, Overrides], Field(min_length=1)]
    """Name -> the variant's own settings. Beside them, and in `common`, `tune` may give settings with values to try:
    `tune: {learner.optimizer.learning_rate: [1e-4, 2e-4]}`."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
    """Seeds with which every variant is run."""
    budget: Budget
    reward: str
    """The reward on the held-out prompts that the report is about."""
    targets: list[float] = Field(default=[])
    """Values of this reward, to each of which the report counts iterations, forward passes and seconds."""
    baseline: str
    """The variant with which the others are compared."""
    tuning: Tuning | None = None
    timing_rounds: PositiveInt = 5
    """Rounds in which the seconds of an iteration are measured, one iteration of every variant in each."""
    resources: dict[str, Amount] | None = None
    """Resources that Ray reserves for each run with execution `in_process`, such as `{CPU: 1, GPU: 1}`. null: a CPU for
    each of its threads, and a GPU if there are any and `policy.device` isn't `cpu`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.baseline not in self.variants:
            raise ValueError(f"baseline is '{self.baseline}'; it must be one of {', '.join(self.variants)}")
        tuned = self.tuning.seeds if self.tuning else []
        for name, seeds in (("seeds", self.seeds), ("tuning.seeds", tuned)):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{name} is {seeds}; a seed is given twice")
        if both := set(self.seeds) & set(tuned):
            raise ValueError(f"tuning.seeds has {min(both)}, one of seeds; give others to the runs that are tuned")
        return self


@dataclass(frozen=True)
class Candidate:
    """A variant with values for what is tuned: its only one if nothing is."""

    values: Mapping[str, Any]
    """Tuned setting -> its value."""
    settings: RunSettings
    validation: RunSettings | None
    """The settings with validation prompts in place of the held-out ones; None if nothing is tuned."""


@dataclass(frozen=True)
class Study:
    """A study, ready to be run into a folder."""

    name: str
    folder: Path
    file: StudyFile
    variants: Mapping[str, Sequence[Candidate]]
    """Name -> its candidates."""


def load_study(path: Path, folder: Path | None = None) -> Study:
    """The study in a YAML file, whose results are to go to `folder` (default: runs/NAME).

    Raises InputError with one line per mistake, in the file or in a variant's recipe.
    """
    file = validated(StudyFile, read_sections(path, "study"))
    variants: dict[str, list[Candidate]] = {}
    mistakes: dict[str, list[str]] = {}
    for name in file.variants:
        try:
            variants[name] = list(_candidates(path, file, name))
        except InputError as error:
            for line in str(error).splitlines():
                mistakes.setdefault(line, []).append(name)
    if mistakes:
        lines = (f"variants.{','.join(names)}: {line}" for line, names in mistakes.items())
        raise InputError("\n".join(lines))
    _must_be_comparable(file, variants)
    return Study(path.stem, (folder or Path("runs", path.stem)).resolve(), file, variants)


def _candidates(path: Path, file: StudyFile, name: str) -> Iterator[Candidate]:
    """The candidates of a variant. Raises InputError for what a recipe of this study can't have."""
    layers = [dict(file.common), dict(file.variants[name])]
    tuned: Any = {}
    for layer in layers:
        tuned = layer.pop(TUNE, tuned)
    if not isinstance(tuned, dict) or not all(isinstance(values, list) and values for values in tuned.values()):
        raise InputError(f"tune is {tuned!r}; it must give settings with lists of values")
    for key in chain(*layers, tuned):
        if key in OF_THE_STUDY:
            raise InputError(f"'{key}' is decided by {OF_THE_STUDY[key]}; leave it out")
    if tuned and not file.tuning:
        raise InputError("tune chooses values by prompts of its own; name them: tuning: {prompts: FILE}")
    first = {"name": name, "seed": file.seeds[0]}
    for values in product(*tuned.values()):
        point = dict(zip(tuned, values, strict=True))
        settings = _with_sizes(_with_threads(load_variant(path, file.base, [*layers, point, first])))
        _must_be_measurable(file, settings)
        validation = None
        if tuned and file.tuning:
            prompts = {"prompts.held_out": str(file.tuning.prompts)}
            others = load_variant(path, file.base, [*layers, point, first, prompts]).prompts
            validation = settings.model_copy(update={"prompts": others})
            _must_be_apart(settings, validation)
        yield Candidate(point, settings, validation)


def _with_threads(settings: RunSettings) -> RunSettings:
    """The settings with one thread if the run is one process and they say nothing of threads."""
    one = settings.execution == "in_process" and settings.threads is None
    return settings.model_copy(update={"threads": 1}) if one else settings


def _with_sizes(settings: RunSettings) -> RunSettings:
    """The settings with numbers in place of `auto` if the run is one process, which is also timed; on Ray each run
    chooses them when it starts."""
    if settings.execution == "ray" or not settings.automatic:
        return settings
    from ..plan.sizes import sizes_here  # and torch with it

    return sizes_here(settings)


def sized_as(settings: RunSettings, run: Path) -> RunSettings:
    """The settings with the numbers that the run in a folder has chosen in place of `auto`."""
    if not settings.automatic:
        return settings
    from ..plan.sizes import same_sizes  # and torch with it

    return same_sizes(settings, run)


def _must_be_measurable(file: StudyFile, settings: RunSettings) -> None:
    if file.reward not in settings.rewards:
        raise InputError(f"reward is '{file.reward}'; the rewards of this recipe are {', '.join(settings.rewards)}")
    if not settings.evaluation.every:
        raise InputError("evaluation.every is 0; curves need evaluations, such as common: {evaluation.every: 5}")
    if not settings.prompts.held_out:
        raise InputError("prompts.held_out is missing; all seeds must be evaluated on the same prompts")
    budgets = {"budget": file.budget, "tuning.budget": file.tuning.budget if file.tuning else None}
    for name, budget in budgets.items():
        if budget and budget.seconds and settings.execution == "ray":
            raise InputError(
                f"{name} is of seconds, which on Ray are known from finished runs alone; give iterations or "
                "forward_passes, or execution: in_process"
            )


def _must_be_apart(settings: RunSettings, validation: RunSettings) -> None:
    if both := set(_held_out(settings)) & set(_held_out(validation)):
        raise InputError(
            f"tuning.prompts has {len(both)} of the held-out prompts, such as '{min(both)}'; values must be chosen by "
            "others than those of the report"
        )


def _must_be_comparable(file: StudyFile, variants: Mapping[str, Sequence[Candidate]]) -> None:
    """Raises InputError for a variant whose evaluations are made otherwise than the baseline's."""

    def way(settings: RunSettings) -> str:
        return made_with(settings, sampled_prompts(_held_out(settings), settings))[file.reward]

    usual = way(variants[file.baseline][0].settings)
    for name, candidates in variants.items():
        if any(way(candidate.settings) != usual for candidate in candidates):
            raise InputError(
                f"variants.{name}: its evaluations can't be compared with those of '{file.baseline}'; give all "
                "variants the same evaluation.steps, held-out prompts and policy"
            )


def _held_out(settings: RunSettings) -> Sequence[Prompt]:
    prompts = settings.prompts
    assert prompts.held_out
    return _read(prompts.held_out, prompts.column, prompts.picture_column)[: settings.evaluation.prompts]


@lru_cache
def _read(source: Path, column: str, picture_column: str | None) -> list[Prompt]:
    return read_prompts(source, "prompts.held_out", column, picture_column, quiet=True)
