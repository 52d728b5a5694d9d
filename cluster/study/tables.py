"""The tables of a study's report: held-out reward at equal effort, effort to targets, costs, diversity."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .curves import AXES, Curve
from .file import Candidate, Study
from .statistics import Estimate, censored_mean, mean, ratio
from .timing import measurements, typical
from .trials import chosen, tuning_trials, validation_score

QUARTERS = (0.25, 0.5, 0.75, 1.0)
Curves = Mapping[str, Sequence[Curve]]
"""Variant -> the curves of its runs that have begun."""


@dataclass(frozen=True)
class Table:
    """A table, for people and for programs."""

    name: str
    """Name of the table's CSV file."""
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    records: Sequence[Mapping[str, Any]]
    """Lines of the CSV file: the figures in full."""


def number(value: float) -> str:
    """A figure with three digits, or all that stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def score(value: float) -> str:
    """A reward."""
    return f"{value:.3f}"


def equal_effort(curves: Curves, axis: str) -> Table | None:
    """The held-out reward at quarters of the effort that every variant has got to; None if that is nothing."""
    ends = [max((c.effort[axis][-1] for c in own if axis in c.effort), default=0.0) for own in curves.values()]
    if not min(ends):
        return None
    efforts = [share * min(ends) for share in QUARTERS]
    rows, records = [], []
    for variant, own in curves.items():
        row = [f"`{variant}`"]
        for effort in efforts:
            values = [value for c in own if not np.isnan(value := float(c.at(axis, effort)))]
            found = mean(values)
            row.append(found.text(score) + _of(len(values), len(own)))
            records.append({"variant": variant, "axis": axis, "effort": effort, "runs": len(values)} | _flat(found))
        rows.append(row)
    head = ["variant", *(f"{number(effort)} {AXES[axis]}" for effort in efforts)]
    return Table(f"reward_by_{axis}", head, rows, records)


def targets(study: Study, curves: Curves) -> Iterator[tuple[float, Table]]:
    """For each target the effort to reach it, and the baseline's effort over it. Rows are in the records alone."""
    for target in study.file.targets:
        until = {
            axis: {
                variant: [c.until(axis, target) for c in own]
                for variant, own in curves.items()
                if own and all(axis in c.effort for c in own)
            }
            for axis in AXES
        }
        rows, records = [], []
        for variant, own in curves.items():
            reached = sum(c.until("iterations", target)[1] for c in own)
            efforts, ratios = [], []
            for axis, by_variant in until.items():
                base, mine = (_apart(by_variant.get(name, [])) for name in (study.file.baseline, variant))
                effort, times = censored_mean(*mine), ratio(base[0], mine[0], base[1], mine[1])
                if axis != "rows":
                    efforts.append(effort.text(number))
                    ratios.append("1" if variant == study.file.baseline else times.text(number))
                record = {"variant": variant, "target": target, "axis": axis, "runs": len(own), "reached": reached}
                records.append(record | _flat(effort) | _flat(times, "ratio_"))
            rows.append([f"`{variant}`", f"{reached} of {len(own)}", *efforts, *ratios])
        titles = [title for axis, title in AXES.items() if axis != "rows"]
        head = ["variant", "reached", *titles, *(f"times fewer {title}" for title in titles)]
        yield target, Table(f"target_{target:g}", head, rows, records)


def costs(study: Study, curves: Curves) -> Table:
    """Forward passes, rows and seconds of an iteration, by phase, with the baseline's seconds over them."""
    timed = {variant: _measurements(study, variant, own) for variant, own in curves.items()}
    phases = list(dict.fromkeys(phase for lines in timed.values() for line in lines for phase in line["phase_seconds"]))
    base = typical([line["seconds"] for line in timed.get(study.file.baseline, [])])
    rows, records = [], []
    for variant, own in curves.items():
        lines = timed[variant]
        counts = {
            name: mean([float(np.mean([line[name] for line in c.metrics])) for c in own if c.metrics])
            for name in ("forward_passes", "rows")
        }
        seconds = [line["seconds"] for line in lines]
        total = typical(seconds)
        by_phase = [typical([line["phase_seconds"].get(phase, 0.0) for line in lines]) for phase in phases]
        spread = f" ({number(min(seconds))} to {number(max(seconds))})" if seconds else ""
        shown = [f"{number(total)}{spread}" if total else "not measured", *(number(p or 0.0) for p in by_phase)]
        times = number(base / total) if base and total else "–"
        rows.append([f"`{variant}`", *(count.text(number) for count in counts.values()), *shown, times])
        record = {"variant": variant} | {name: count.value for name, count in counts.items()}
        records.append(record | {"seconds": total, **dict(zip(phases, by_phase, strict=True))})
    head = ["variant", "forward passes", "trained rows", "seconds", *phases, "times as fast"]
    return Table("costs", head, rows, records)


def diversity(curves: Curves) -> Table:
    """Diversity of sampled leaves and of held-out pictures, at the first and the last iteration so far."""
    measures: dict[str, Callable[[Curve], Sequence[float]]] = {
        "leaves": lambda c: [line["diversity"] for line in c.metrics if "diversity" in line],
        "held_out": lambda c: list(c.diversity),
    }
    rows, records = [], []
    for variant, own in curves.items():
        row, record = [f"`{variant}`"], {"variant": variant}
        for name, values in measures.items():
            known = [values(c) for c in own if len(values(c))]
            for when, place in (("first", 0), ("last", -1)):
                found = mean([v[place] for v in known])
                row.append(found.text(number))
                record |= _flat(found, f"{name}_{when}_")
        rows.append(row)
        records.append(record)
    head = ["variant", "leaves, first", "leaves, last", "held-out, first", "held-out, last"]
    return Table("diversity", head, rows, records)


def tuning(study: Study) -> Table:
    """The candidates of the tuned variants with their validation scores."""
    rows, records = [], []
    for variant in study.variants:
        taken = chosen(study, variant)
        for candidate, runs in tuning_trials(study, variant):
            states = {run.state for run in runs}
            found = validation_score(study, runs) if states == {"finished"} else float("nan")
            values = ", ".join(f"{key}={value}" for key, value in candidate.values.items())
            shown = score(found) if states == {"finished"} else ", ".join(sorted(states))
            mark = "chosen" + " (an end of its list)" * _at_an_end(study, variant, candidate)
            rows.append([f"`{variant}`", f"`{values}`", shown, mark if candidate is taken else ""])
            records.append({"variant": variant, **candidate.values, "score": found, "chosen": candidate is taken})
    return Table("tuning", ["variant", "values", "validation score", ""], rows, records)


def _at_an_end(study: Study, variant: str, candidate: Candidate) -> bool:
    """Whether a value might have been better beyond those that were tried."""

    def ends(key: str, value: Any) -> bool:
        tried = [other.values[key] for other in study.variants[variant]]
        numbers = all(type(other) in (int, float) for other in tried)  # beyond a bool there is nothing
        return numbers and min(tried) < max(tried) and value in (min(tried), max(tried))

    return any(ends(key, value) for key, value in candidate.values.items())


def points(curves: Curves) -> Table:
    """Every evaluation of every run, as records."""
    records = [
        {"variant": variant, "seed": c.trial.settings.seed, "reward": float(c.reward[i])}
        | {axis: float(effort[i]) for axis, effort in c.effort.items()}
        for variant, own in curves.items()
        for c in own
        for i in range(len(c.reward))
    ]
    return Table("curves", [], [], records)


def _measurements(study: Study, variant: str, own: Sequence[Curve]) -> list[dict[str, Any]]:
    settings = own[0].trial.settings if own else study.variants[variant][0].settings
    return measurements(study, settings)


def _apart(until: Sequence[tuple[float, bool]]) -> tuple[list[float], list[bool]]:
    return [effort for effort, _ in until], [reached for _, reached in until]


def _of(some: int, every: int) -> str:
    return f" [{some} of {every}]" if some < every else ""


def _flat(estimate: Estimate, prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in asdict(estimate).items()}
