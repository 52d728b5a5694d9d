"""The section of a run's pictures: held-out prompts before and after, and samples of an iteration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ...proto.errors import InputError
from .evaluations import Evaluated, evaluated
from .figures import thinned, weights
from .pages import Asked, Links, asked_count, asked_number, figure, render, shown
from .runs import Run
from .samples import by_prompt, iterations, samples_of
from .sources import sources

SHOWN_PICTURES = 24
ORDERS = {"gain": "largest gain first", "loss": "largest loss first", "prompt": "as in the file"}


@dataclass(frozen=True)
class Pair:
    """The pictures of one held-out prompt, from the same noise, one for each evaluation."""

    prompt: str
    started_from: Sequence[str]
    """Addresses of the pictures that came with the prompt."""
    gain: float
    shown: Sequence[Mapping[str, str]]
    scores: Sequence[str]


def build(run: Run, asked: Asked, links: Links) -> Markup:
    """Held-out pictures of the first evaluation beside those of any later one, by what they gained; samples by prompt.

    `order`, `reward`, `show` (how many) and `samples` (an iteration) may be asked for, and `evaluations`: how many of
    them can be chosen from at most.
    """
    found = evaluated(run)
    if found:
        found = [one for one in found if one.prompts == found[-1].prompts]
    kept = iterations(run)
    iteration = asked_number(asked, "samples", kept)
    samples = samples_of(run, iteration) if iteration is not None else None
    rewards = list(found[-1].rewards if found else samples.rewards if samples else ())
    reward = _choice(asked, "reward", rewards, _main(run, rewards))
    order = _choice(asked, "order", list(ORDERS), "gain")
    if (limit := asked_count(asked, "evaluations")) is not None:
        found = thinned(found, max(2, limit))
    show, count = asked.get("show", str(SHOWN_PICTURES)), asked_count(asked, "show", str(SHOWN_PICTURES))
    pairs = _pairs(found, reward, order, count, links)
    scored = samples.rewards if samples else {}
    sorted_by = reward if reward in scored else _main(run, list(scored))
    return render(
        "pictures.html",
        pairs=pairs,
        total=len(found[-1].prompts) if found else 0,
        iterations=[one.iteration for one in found],
        labels=[f"iteration {one.iteration}, mean {figure(_mean(one.rewards[reward]))}" for one in found],
        rewards=rewards,
        reward=reward,
        orders=ORDERS,
        order=order,
        show=show,
        default=SHOWN_PICTURES,
        kept=kept,
        iteration=iteration,
        samples=by_prompt(samples, iteration, sorted_by, links) if samples and iteration is not None else [],
        sorted_by=sorted_by,
        grid=links.picture(f"samples/{iteration}") if iteration is not None else None,
        action=links.section("pictures"),
    )


def _main(run: Run, names: Sequence[str]) -> str:
    """The reward among `names` with the largest weight; an empty text if there is none."""
    weighted = weights(run)
    return max(names, key=lambda name: abs(weighted.get(name, 0.0)), default="")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _pairs(found: Sequence[Evaluated], reward: str, order: str, count: int | None, links: Links) -> list[Pair]:
    if not found:
        return []
    gains = [now - before for before, now in zip(found[0].rewards[reward], found[-1].rewards[reward], strict=True)]
    indices = list(range(len(gains)))
    if order != "prompt":
        indices.sort(key=lambda index: gains[index], reverse=order == "gain")
    return [
        Pair(
            found[-1].prompts[index],
            sources(found[-1].prompts[index], links),
            gains[index],
            [shown(links, f"evaluation/{one.name}/{index}", found[-1].has_sound) for one in found],
            [figure(one.rewards[reward][index]) for one in found],
        )
        for index in indices[:count]
    ]


def _choice(asked: Asked, name: str, known: Sequence[str], default: str) -> str:
    given = asked.get(name, default)
    if given not in known and known:
        raise InputError(f"{name} is '{given[:40]}'; there is {', '.join(known)}")
    return given
