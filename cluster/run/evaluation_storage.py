"""The file of an evaluation: its pictures and scores in safetensors, its prompts in the header."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

from ...proto.atomic_files import whole
from ...proto.prompts import dump_prompts, parse_prompts
from ...proto.safetensors_codec import encode
from .evaluation import Evaluation


def write(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation, whole or not at all."""
    rewards = {f"reward.{name}": values for name, values in evaluation.rewards.items()}
    with whole(path) as temporary:
        header = {"prompts": dump_prompts(evaluation.prompts)}
        temporary.write_bytes(encode({"media": evaluation.media, **rewards}, header))


def read_prompts(path: Path) -> Sequence[str]:
    """The prompt of every picture of the evaluation in a file; no picture is read."""
    with safe_open(path, "numpy") as file:
        return parse_prompts(file.metadata()["prompts"])


def read(path: Path, prompts: int | None = None) -> Evaluation:
    """The evaluation in a file; with `prompts`, one picture for each of so many first prompts. Others aren't read."""
    with safe_open(path, "numpy") as file:
        every = parse_prompts(file.metadata()["prompts"])
        names = [name for name in file.keys() if name != "media"]  # noqa: SIM118  # it is no mapping
        rewards = {name.removeprefix("reward."): file.get_tensor(name) for name in names}
        if prompts is None:
            return Evaluation(every, file.get_tensor("media"), rewards)
        firsts: dict[str, int] = {}  # a prompt may have several samples
        for number, prompt in enumerate(every):
            firsts.setdefault(prompt, number)
        shown = list(firsts.values())[:prompts]
        media = np.stack([np.asarray(file.get_slice("media")[number]) for number in shown])
        return Evaluation(list(firsts)[:prompts], media, {name: values[shown] for name, values in rewards.items()})
