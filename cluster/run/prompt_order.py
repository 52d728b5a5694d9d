"""Which prompts are trained on, and in which order."""

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from itertools import count

import numpy as np

from ...proto.errors import InputError
from ...proto.prompt import Prompt
from ...proto.prompts import prompts_in
from ...proto.settings import RunSettings
from ...reward_service.scorers import check_prompts
from ...rollout_workers.noise import Stream
from ...rollout_workers.policies.load import check_pictures

HELD_OUT_PASS = 2**63 - 1
"""Number of a pass through the prompts that no run gets to, whose order says which of them are held out."""


def cut_warning(cut: Sequence[str], limit: int) -> str:
    """The warning about the prompts of a run that are `cut`, with `policy.max_sequence_length` at `limit`."""
    first = cut[0] if len(cut[0]) <= 80 else f"{cut[0][:80]}..."
    count = "1 prompt is" if len(cut) == 1 else f"{len(cut):,} prompts are"
    setting = f"policy.max_sequence_length is {limit}"
    return f"{count} longer than the model takes and will be cut ({setting}), such as: {first}"


def training_and_held_out(settings: RunSettings) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on, and those to evaluate on, of which there may be none.

    Warns of rows that are repeated, and of texts that are in both. Raises InputError for sources that can't be read, or
    that leave nothing to train on, for prompts without the fields that a judge's questions name, and for other pictures
    than the policy reads.
    """
    given, warn = settings.prompts, logging.getLogger(__name__).warning
    train = prompts_in(given, "train")
    if repeats := len(train) - len({(prompt, json.dumps(prompt.fields, sort_keys=True)) for prompt in train}):
        warn("prompts.train: %d of %d rows repeat an earlier one", repeats, len(train))
    if given.held_out:
        held_out = prompts_in(given, "held_out")
        trained = set(train)
        if both := sum(prompt in trained for prompt in held_out):
            warn("prompts.held_out: %d of %d are in prompts.train too, and are trained on", both, len(held_out))
    else:
        texts = list(dict.fromkeys(train))  # of rows with one text the first
        if given.held_out_count >= len(texts):
            raise InputError(
                f"prompts.held_out_count is {given.held_out_count} of {len(texts)} prompts; it must leave some"
            )
        kept = {texts[i] for i in _shuffled(HELD_OUT_PASS, len(texts), settings.seed)[: given.held_out_count]}
        held_out = [prompt for prompt in texts if prompt in kept]
        train = [prompt for prompt in train if prompt not in kept]
    check_prompts(settings.rewards, [*train, *held_out])
    check_pictures(settings, [*train, *held_out])
    if given.focused and given.per_iteration > len(train):
        raise InputError(
            f"prompts.per_iteration is {given.per_iteration} of {len(train)} prompts; with prompts.focus no prompt is "
            "twice in an iteration, so give more prompts, or fewer per iteration"
        )
    return train, held_out[: settings.evaluation.prompts]


def places_of(iteration: int, prompts: int, per_iteration: int, seed: int) -> list[int]:
    """The places of an iteration's prompts in the list of all: consecutive ones of an order that is reshuffled in every
    pass. Iterations count from 1.

    A pure function of its arguments, so that a resumed run continues in the same order.
    """
    first = (iteration - 1) * per_iteration
    return [_place(number, prompts, seed) for number in range(first, first + per_iteration)]


def distinct_places_of(iteration: int, prompts: int, per_iteration: int, seed: int) -> list[int]:
    """The places of an iteration's prompts, none of them twice: others follow where a pass ends within it.

    Raises ValueError for fewer prompts than an iteration has.
    """
    if per_iteration > prompts:
        raise ValueError(f"an iteration has {per_iteration} prompts; there are {prompts}")
    found: dict[int, None] = {}
    for number in count((iteration - 1) * per_iteration):
        found[_place(number, prompts, seed)] = None
        if len(found) == per_iteration:
            break
    return list(found)


def _place(number: int, prompts: int, seed: int) -> int:
    """The place of a prompt that is `number` in the order of all passes."""
    which, place = divmod(number, prompts)
    return int(_shuffled(which, prompts, seed)[place])


@lru_cache(maxsize=2)  # prompts are drawn pass after pass
def _shuffled(which_pass: int, count: int, seed: int) -> np.ndarray:
    noise = np.random.Philox(key=[seed, which_pass], counter=[0, 0, 0, int(Stream.PROMPTS)])
    return np.random.Generator(noise).permutation(count)
