"""GenEval (arXiv 2310.11513) as a reward: objects are detected, counted, placed and their colours named.

It needs Mask2Former's instances of COCO and CLIP, in folders that two variables name, and nothing beside transformers:

    hf download facebook/mask2former-swin-small-coco-instance --local-dir models/mask2former
    hf download openai/clip-vit-large-patch14 --local-dir models/clip
    export GENEVAL_DETECTOR=models/mask2former GENEVAL_CLIP=models/clip PYTHONPATH=examples

and in the recipe, with prompts such as the rows of GenEval's evaluation_metadata.jsonl:

    rewards:
      geneval: {scorer: "geneval:load"}
      geneval_exact: {weight: 0.0, scorer: "geneval:load"}

`geneval` is the share of a prompt's claims that hold, `geneval_exact` is 1 if all do, as the benchmark counts. Its own
detector is the same model with weights of mmdet, so scores come near the benchmark's and are not the same.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from branchgrpo.proto.errors import InputError
from branchgrpo.proto.prompt import fields_of
from branchgrpo.reward_service.clip import ClipTowers, load_towers
from PIL import Image
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PHRASES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
MIN_CONFIDENCE, MIN_CONFIDENCE_TO_COUNT = 0.3, 0.9
MAX_OBJECTS = 16
"""Objects of a kind that are looked at, the surest first."""
MIN_DISTANCE = 0.1
"""By how much centres must differ to lie on one side, as a share of the sizes of both objects."""
GREY = 0x99
"""What surrounds an object whose colour is to be named."""
USUAL_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
}
"""Name of a kind in COCO and its detectors -> its name in GenEval's prompts, where they differ."""


@dataclass(frozen=True)
class Found:
    """A detected object."""

    name: str
    confidence: float
    mask: np.ndarray
    """bool [height, width], with at least one pixel."""

    @property
    def box(self) -> np.ndarray:
        """Left, top, right and bottom, float64 [4]."""
        rows, columns = (np.flatnonzero(self.mask.any(axis=axis)) for axis in (1, 0))
        return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


class GenEval:
    """Scores pictures whose prompts have the fields `include` and perhaps `exclude` and `tag`, as GenEval's have."""

    def __init__(self, detector: Any, eyes: Any, towers: ClipTowers) -> None:
        self._detector, self._eyes, self._towers = detector, eyes, towers

    def __call__(self, media: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Rewards `geneval` and `geneval_exact` of pictures, uint8 [n, height, width, 3]."""
        claims = [self._claims(picture, prompt) for picture, prompt in zip(media, prompts, strict=True)]
        return {
            "geneval": np.array([np.mean(own) for own in claims], float),
            "geneval_exact": np.array([all(own) for own in claims], float),
        }

    def _claims(self, picture: np.ndarray, prompt: str) -> list[bool]:
        wanted = fields_of(prompt)
        if not wanted.get("include"):
            raise InputError(
                f"geneval needs prompts with the field 'include', as GenEval's are; '{prompt[:80]}' has none"
            )
        named = [thing["class"] for thing in (*wanted["include"], *wanted.get("exclude", ()))]
        if unknown := [name for name in named if usual_name(name) not in self._kinds.values()]:
            raise InputError(
                f"geneval's detector doesn't know the class '{unknown[0]}' of the prompt '{prompt[:80]}'; it knows "
                f"{', '.join(sorted(set(self._kinds.values())))}"
            )
        least = MIN_CONFIDENCE_TO_COUNT if wanted.get("tag") == "counting" else MIN_CONFIDENCE
        found = self.detected(picture, least)
        return claims(found, wanted, lambda objects, name: self.colours(picture, objects, name))

    @cached_property
    def _kinds(self) -> dict[int, str]:
        """The detector's number of a kind -> GenEval's name."""
        return {number: usual_name(label) for number, label in self._detector.config.id2label.items()}

    @torch.no_grad()
    def detected(self, picture: np.ndarray, least: float) -> dict[str, list[Found]]:
        """GenEval's name of a kind -> the objects that are detected with more than a confidence, the surest first."""
        own = self._detector.device
        inputs = self._eyes(Image.fromarray(picture), return_tensors="pt").to(own)
        (result,) = self._eyes.post_process_instance_segmentation(
            self._detector(**inputs), threshold=least, target_sizes=[picture.shape[:2]], return_binary_maps=True
        )
        objects: dict[str, list[Found]] = {}
        for info, mask in zip(result["segments_info"], result["segmentation"], strict=False):
            name, seen = self._kinds[info["label_id"]], np.asarray(mask.cpu()).astype(bool)
            if seen.any():
                objects.setdefault(name, []).append(Found(name, info["score"], seen))
        return {name: sorted(all_, key=lambda one: -one.confidence)[:MAX_OBJECTS] for name, all_ in objects.items()}

    def colours(self, picture: np.ndarray, objects: Sequence[Found], name: str) -> list[str]:
        """The colour of each object, as CLIP sees it by itself on grey."""
        phrases = [phrase.format(colour=colour, name=name) for colour in COLOURS for phrase in PHRASES]
        told = self._towers.prompts(phrases).reshape(len(COLOURS), len(PHRASES), -1).mean(dim=1)
        told = torch.nn.functional.normalize(told, dim=-1)
        named = []
        for one in objects:
            left, top, right, bottom = one.box.astype(int)
            alone = np.where(one.mask[..., None], picture, np.uint8(GREY))[top:bottom, left:right]
            named.append(COLOURS[int((self._towers.pictures(alone[None]) @ told.T).argmax())])
        return named


def usual_name(name: str) -> str:
    """The name that GenEval's prompts have for a kind of object.

    >>> usual_name("Mouse"), usual_name("computer mouse")
    ('computer mouse', 'computer mouse')
    """
    return USUAL_NAMES.get(name.lower(), name.lower())


def claims(found: Mapping[str, Sequence[Found]], wanted: Mapping[str, Any], colours: Any) -> list[bool]:
    """Whether each thing that a prompt includes is there, in number, colour and place, and what it excludes isn't.

    `found` has GenEval's names of kinds. `colours` names the colours of objects of a kind.
    """
    held: list[bool] = []
    groups: list[Sequence[Found]] = []
    for thing in wanted["include"]:
        objects = list(found.get(usual_name(thing["class"]), ()))[: thing["count"]]
        fits = len(objects) == thing["count"]
        if fits and "color" in thing:
            fits = colours(objects, thing["class"]).count(thing["color"]) >= thing["count"]
        if fits and "position" in thing:
            side, other = thing["position"]
            places = [sides(one.box, target.box) for one in objects for target in groups[other]]
            fits = bool(places) and all(side in own for own in places)
        held.append(fits)
        groups.append(objects if fits else [])
    return held + [len(found.get(usual_name(own["class"]), ())) < own["count"] for own in wanted.get("exclude", [])]


def sides(one: np.ndarray, other: np.ndarray) -> set[str]:
    """On which sides of another box a box lies: left of, right of, above, below; none where they are too near."""
    offset = (one[:2] + one[2:] - other[:2] - other[2:]) / 2
    sizes = (one[2:] - one[:2]) + (other[2:] - other[:2])
    beyond = np.maximum(np.abs(offset) - MIN_DISTANCE * sizes, 0) * np.sign(offset)
    if np.abs(beyond).max() < 1e-3:
        return set()
    x, y = beyond / np.linalg.norm(offset)
    lies = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {side for side, there in lies.items() if there}


def load(threads: int | None = None) -> GenEval:
    """Loads both models, onto a GPU if there is one."""
    folder = os.environ["GENEVAL_DETECTOR"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    detector = Mask2FormerForUniversalSegmentation.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    detector = detector.eval().to(device)
    eyes = Mask2FormerImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return GenEval(detector, eyes, load_towers(os.environ["GENEVAL_CLIP"]))
