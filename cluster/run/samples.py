"""Samples of an iteration: the leaves of its first trees, with their scores, as a file beside the grid of them.

samples/iteration-<iteration>.safetensors has an array `reward.<name>` over the pictures, and for each of them
`picture.<number>`, the bytes of a WebP, and `webm.<number>`, those of a WebM, if they have sound. Its header has
`prompts`, one for each picture, as JSON, and if they have sound `trees`, the number of each one's tree. Pictures are in
the order of trees and leaves.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...proto.atomic_files import whole
from ...proto.media import Media
from ...proto.prompt import dump_prompts, parse_prompts
from ...proto.safetensors_codec import decode, encode
from ...proto.tree import FloatArray
from ...proto.webm import webm
from ...rollout_workers.thumbnails import MAX_SIDE, thumbnails
from .pictures import sample_grid

FOLDER = "samples"


@dataclass(frozen=True)
class TreeSamples:
    """All leaves of one tree."""

    tree: int
    """Number of the tree within the iteration."""
    prompt: str
    rewards: Mapping[str, FloatArray]
    """Scores of the leaves by reward, float64 [leaves]."""
    media: Media
    """The leaves."""


@dataclass(frozen=True)
class Samples:
    """The leaves of several trees, as the file of an iteration has them."""

    prompts: Sequence[str]
    """Prompt of every leaf."""
    rewards: Mapping[str, FloatArray]
    """Scores of the leaves by reward, float64 [leaves]."""
    pictures: Sequence[bytes]
    """What is seen of the leaves as WebP, at most 2^22 pixels for each tree; clips as animations."""
    playable: Sequence[bytes] = ()
    """The leaves as WebM, if they have sound."""
    trees: Sequence[int] = ()
    """Number of the tree of every leaf with sound."""

    def playable_of(self, tree: int, rewards: Mapping[str, FloatArray]) -> list[bytes]:
        """What plays of the leaves of a tree, if it has these scores: a run that has returned to an earlier checkpoint
        may have sampled another one since."""
        places = [place for place, number in enumerate(self.trees) if number == tree]
        same = self.rewards.keys() == rewards.keys() and all(
            np.array_equal(self.rewards[name][places], own) for name, own in rewards.items()
        )
        return [self.playable[place] for place in places] if same else []


def samples_file(iteration: int, ending: str = "safetensors") -> str:
    """The file of an iteration's samples within the run folder; with the ending `png`, that of the grid."""
    return f"{FOLDER}/iteration-{iteration:06d}.{ending}"


def write(run: Path, iteration: int, trees: Sequence[TreeSamples]) -> Image.Image:
    """Write the samples of an iteration, and the grid of them, each whole or not at all, into a run's folder. Returns
    the grid.
    """
    grid = sample_grid(run / samples_file(iteration, "png"), [tree.media for tree in trees])
    pictures = [data for tree in trees for data in thumbnails(tree.media.looks(), len(tree.media))]
    playable = [webm(leaf, MAX_SIDE) for tree in trees if tree.media.sound is not None for leaf in tree.media]
    arrays = {f"picture.{i}": np.frombuffer(data, np.uint8) for i, data in enumerate(pictures)}
    arrays |= {f"webm.{i}": np.frombuffer(data, np.uint8) for i, data in enumerate(playable)}
    for name in trees[0].rewards:
        arrays[f"reward.{name}"] = np.concatenate([tree.rewards[name] for tree in trees])
    header = {"prompts": dump_prompts([tree.prompt for tree in trees for _ in tree.media])}
    if playable:
        header["trees"] = json.dumps([tree.tree for tree in trees for _ in tree.media])
    with whole(run / samples_file(iteration)) as temporary:
        temporary.write_bytes(encode(arrays, header))
    return grid


def parse(data: bytes) -> Samples:
    """The samples in the bytes of a file. Raises ValueError if they hold none, or aren't whole."""
    arrays, header = decode(data)
    try:
        prompts = parse_prompts(header["prompts"])
        pictures = [arrays[f"picture.{i}"].tobytes() for i in range(len(prompts))]
        playable = [arrays[f"webm.{i}"].tobytes() for i in range(len(prompts)) if "webm.0" in arrays]
        trees = json.loads(header.get("trees", "[]"))
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    rewards = {name.removeprefix("reward."): own for name, own in arrays.items() if name.startswith("reward.")}
    if not rewards:
        raise ValueError("it has no scores")
    for name, own in rewards.items():
        if own.shape != (len(prompts),):
            raise ValueError(f"reward '{name}' has the shape {own.shape}, and there are {len(prompts)} pictures")
    if trees and len(trees) != len(playable):
        raise ValueError(f"it has numbers of trees for {len(trees)} leaves, of which {len(playable)} play")
    return Samples(prompts, rewards, pictures, playable, trees)


def sampled(run: Path) -> list[tuple[int, Path]]:
    """Iteration and path of every file of samples, and of every grid of them, in a run's folder, ascending."""
    names = {
        path: re.fullmatch(r"iteration-(\d+)\.(?:safetensors|png)", path.name) for path in (run / FOLDER).glob("*")
    }
    return sorted((int(name[1]), path) for path, name in names.items() if name)


def sampled_iterations(run: Path) -> list[int]:
    """Iterations of which a run's folder has samples, or a grid of them, ascending."""
    return list(dict.fromkeys(iteration for iteration, _ in sampled(run)))
