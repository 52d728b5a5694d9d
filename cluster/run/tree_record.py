"""A recorded tree: a file that holds all there is to draw of it, and needs none of this project's code to be read.

trees/<iteration>-<tree>.safetensors has arrays over the tree's nodes (parents come before their children), arrays
`reward.<name>` over its leaves, and for every node with a picture `picture.<node>`, the bytes of a WebP. A leaf with
sound has `webm.<node>` too, the bytes of a WebM, unless the iteration's samples have it. The header has `format`,
`iteration`, `tree`, `prompt`, its `fields` and the names of the `rewards` (both as JSON) and `objective`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...proto.atomic_files import whole
from ...proto.errors import InputError
from ...proto.learned_tree import EdgeState, LearnedTree
from ...proto.pictures import Picture
from ...proto.prompt import Prompt, fields_of, pictures_of
from ...proto.safetensors_codec import decode, encode
from ...proto.schedule import IntArray, Schedule
from ...proto.tree import FloatArray, Thumbnail

FOLDER = "trees"
FORMAT = "branchgrpo tree 1"
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TreeRecord:
    """A tree as it was sampled, scored and learned from."""

    iteration: int
    tree: int
    """Number of the tree within the iteration."""
    prompt: str
    """The prompt with its fields, if it has any (`proto/prompt.py`)."""
    objective: str
    """`learner.objective`: with `nft` and `awm` the learner takes leaves in the place of edges."""
    parent: IntArray
    """Parent of every node, int64 [nodes]; -1 for roots. Nodes are numbered depth by depth, leaves last."""
    depth: IntArray
    """Depth of every node, int64 [nodes]; 0 for roots."""
    level: IntArray
    """Place of every node's noise level on the grid of denoising steps, int64 [nodes]; 0 for roots."""
    sigma: FloatArray
    """Noise level of every node, float64 [nodes]; from 1, which is noise, to 0."""
    stochastic: BoolArray
    """Whether the step to every node adds noise, bool [nodes]."""
    trained: BoolArray
    """Whether the schedule trains the edge into every node, bool [nodes]."""
    state: npt.NDArray[np.uint8]
    """What the learner did with the edge into every node, uint8 [nodes]: 0 a root, 1 not to be trained, 2 pruned,
    3 skipped for an advantage of exactly zero, 4 trained."""
    value: FloatArray
    """Value of every node, fused from the scores of the leaves below it, float64 [nodes]."""
    advantage: FloatArray
    """Advantage of the edge into every node, float64 [nodes]."""
    weight: FloatArray
    """Share of every node's edge in the tree's objective, float64 [nodes]."""
    logprob: FloatArray
    """Log-probability of the edge into every node when it was sampled, averaged over latent dimensions, float64
    [nodes]; NaN where its step adds no noise."""
    ratio: FloatArray
    """exp(new - old log-probability) of every trained edge just before its update, float64 [nodes]; NaN elsewhere."""
    rewards: Mapping[str, FloatArray]
    """Scores of the leaves by reward, float64 [leaves]."""
    merit: FloatArray | None = None
    """If leaves alone are learned from, how good each is among those it is compared with, in [0, 1], float64 [leaves];
    NaN where it wasn't learned from."""
    pictures: Mapping[int, bytes] = field(default_factory=dict)
    """Pictures by node, as WebP, clips as animations: leaves, and of splits the clean state predicted there."""
    playable: Mapping[int, bytes] = field(default_factory=dict)
    """Leaves with sound by node, as WebM, unless they are among the iteration's samples (`samples.py`)."""

    @property
    def leaves(self) -> IntArray:
        """Numbers of the leaves, int64 [leaves]."""
        return np.flatnonzero(self.depth == self.depth[-1])


NODE_ARRAYS = {
    "parent": np.int64,
    "depth": np.int64,
    "level": np.int64,
    "sigma": np.float64,
    "stochastic": np.bool_,
    "trained": np.bool_,
    "state": np.uint8,
    "value": np.float64,
    "advantage": np.float64,
    "weight": np.float64,
    "logprob": np.float64,
    "ratio": np.float64,
}
"""The arrays over nodes in a file, and their dtypes."""


def tree_record(
    iteration: int,
    objective: str,
    prompt: str,
    schedule: Schedule,
    logprobs: FloatArray,
    rewards: Mapping[str, FloatArray],
    thumbnails: Mapping[int, Thumbnail],
    learned: LearnedTree,
) -> TreeRecord:
    """The record of a tree: what was sampled of it, and what the learner `learned` from it."""
    noisy = np.array([False, *(step.stochastic for step in schedule.steps)])[schedule.depth]
    return TreeRecord(
        iteration=iteration,
        tree=learned.number,
        prompt=prompt,
        objective=objective,
        parent=schedule.parent,
        depth=schedule.depth,
        level=schedule.levels[schedule.depth],
        sigma=learned.sigmas[schedule.depth],
        stochastic=noisy,
        trained=schedule.trained,
        state=learned.states,
        value=learned.values,
        advantage=learned.advantages,
        weight=learned.weights,
        logprob=np.where(noisy, logprobs, np.nan),
        ratio=learned.ratios,
        rewards=dict(rewards),
        merit=learned.merits,
        pictures={node: own.picture for node, own in sorted(thumbnails.items())},
        playable={node: own.webm for node, own in sorted(thumbnails.items()) if own.webm},
    )


def recorded_trees(run: Path) -> dict[tuple[int, int], Path]:
    """The files of a run's recorded trees by iteration and number of the tree, ascending."""
    found = {}
    for path in (run / FOLDER).glob("*-*.safetensors"):
        iteration, _, tree = path.stem.partition("-")
        if iteration.isdecimal() and tree.isdecimal():
            found[int(iteration), int(tree)] = path
    return dict(sorted(found.items()))


def write(run: Path, record: TreeRecord) -> Path:
    """Write the file of a record, whole or not at all, into a run's folder, and return its path."""
    path = run / FOLDER / f"{record.iteration:06d}-{record.tree:04d}.safetensors"
    arrays = {name: getattr(record, name).astype(dtype) for name, dtype in NODE_ARRAYS.items()}
    arrays |= {f"reward.{name}": values for name, values in record.rewards.items()}
    for kind, files in (("picture", record.pictures), ("webm", record.playable)):
        arrays |= {f"{kind}.{node}": np.frombuffer(data, np.uint8) for node, data in files.items()}
    if record.merit is not None:
        arrays["merit"] = record.merit
    header = {
        "format": FORMAT,
        "iteration": str(record.iteration),
        "tree": str(record.tree),
        "prompt": str(record.prompt),
        "pictures": json.dumps([picture.name for picture in pictures_of(record.prompt)]),
        "fields": json.dumps(dict(fields_of(record.prompt))),
        "objective": record.objective,
        "rewards": json.dumps([*record.rewards]),
    }
    with whole(path) as temporary:
        temporary.write_bytes(encode(arrays, header))
    return path


def read(path: Path) -> TreeRecord:
    """The record in a file. Raises InputError, naming the file, if it holds none, or isn't whole."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is no recorded tree: {error}") from error


def parse(data: bytes) -> TreeRecord:
    """The record in the bytes of a file. Raises ValueError if they hold none, or aren't whole."""
    try:
        return _record(*decode(data))
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error


def _record(arrays: Mapping[str, np.ndarray], header: Mapping[str, str]) -> TreeRecord:
    """Raises ValueError or KeyError if arrays are missing or don't fit together."""
    if header.get("format") != FORMAT:
        raise ValueError(f"its format is '{header.get('format')}', and '{FORMAT}' can be read")
    nodes: dict[str, Any] = {name: arrays[name] for name in NODE_ARRAYS}
    rewards = {name: arrays[f"reward.{name}"] for name in json.loads(header["rewards"])}
    pictures, playable = (_files(arrays, kind) for kind in ("picture", "webm"))
    count, parent, depth = len(nodes["parent"]), nodes["parent"], nodes["depth"]
    for name, dtype in NODE_ARRAYS.items():
        if nodes[name].shape != (count,) or nodes[name].dtype != dtype:
            raise ValueError(f"'{name}' is {nodes[name].dtype} {nodes[name].shape}, not {np.dtype(dtype)} ({count},)")
    roots = parent < 0
    if not count or (parent >= np.arange(count)).any() or (depth[~roots] != depth[parent[~roots]] + 1).any():
        raise ValueError("its nodes are no tree")
    if (nodes["state"] > max(EdgeState)).any():
        raise ValueError(f"it has a state above {max(EdgeState)}")
    leaves = int((depth == depth[-1]).sum())
    if odd := [node for node in pictures if not 0 <= node < count]:
        raise ValueError(f"it has a picture of node {odd[0]}, and {count} nodes")
    if odd := [node for node in playable if not count - leaves <= node < count]:
        raise ValueError(f"it has a sound of node {odd[0]}, which is no leaf")
    of_leaves = {**rewards, **({"merit": arrays["merit"]} if "merit" in arrays else {})}
    for name, own in of_leaves.items():
        if own.shape != (leaves,):
            raise ValueError(f"'{name}' has shape {own.shape}, and the tree {leaves} leaves")
    return TreeRecord(
        iteration=int(header["iteration"]),
        tree=int(header["tree"]),
        prompt=Prompt(
            header["prompt"], json.loads(header["fields"]), map(Picture, json.loads(header.get("pictures", "[]")))
        ),
        objective=header["objective"],
        rewards=rewards,
        merit=arrays.get("merit"),
        pictures=pictures,
        playable=playable,
        **nodes,
    )


def _files(arrays: Mapping[str, np.ndarray], kind: str) -> dict[int, bytes]:
    """The files of a kind by node."""
    found = {name.removeprefix(f"{kind}."): own for name, own in arrays.items() if name.startswith(f"{kind}.")}
    return {int(node): own.tobytes() for node, own in found.items()}
