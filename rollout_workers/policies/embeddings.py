"""Embeddings of prompts: computed once, kept in memory and on disk."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError

from ...proto.atomic_files import whole
from ...proto.prompt import pictures_of
from ...proto.tree import Conditioning
from .base import Policy

IN_MEMORY, IN_MEMORY_BYTES = 256, 2 * 2**30
"""Prompts whose embeddings the host's memory keeps, and their bytes: FLUX.1-dev's take 4 MB each, Wan's of pictures
up to 25."""


class Embeddings:
    """A policy's conditionings by prompt, in the host's memory: the device's is for the networks. Text encoders are on
    the device only while new prompts are encoded.

    On disk they lie in a folder that is named after what they depend on; several processes may share it.
    """

    def __init__(self, policy: Policy, folder: Path | None) -> None:
        """`folder` None keeps them in memory only."""
        self._policy, self._recent = policy, OrderedDict[str, Conditioning]()
        self._folder = folder / policy.encoding if folder else None

    def of(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Conditioning of each prompt, computed alone: in a batch its last bits would depend on the others."""
        found = {prompt: self._known(prompt) for prompt in prompts}
        if missing := [prompt for prompt, known in found.items() if known is None]:
            try:
                for prompt in missing:
                    encoded = {name: value.cpu() for name, value in self._policy.encode(prompt).items()}
                    found[prompt] = encoded
                    self._write(prompt, encoded)
            finally:
                self._policy.release_encoders()
        every = {prompt: known for prompt, known in found.items() if known is not None}
        for prompt, known in every.items():
            self._recent[prompt] = known
            self._recent.move_to_end(prompt)
        held = sum(map(_bytes, self._recent.values()))
        while len(self._recent) > IN_MEMORY or held > IN_MEMORY_BYTES:
            held -= _bytes(self._recent.popitem(last=False)[1])
        return [every[prompt] for prompt in prompts]

    def _known(self, prompt: str) -> Conditioning | None:
        if prompt in self._recent:
            return self._recent[prompt]
        path = self._path(prompt)
        if path is None or not path.is_file():
            return None
        try:
            return safetensors.torch.load_file(path)
        except (OSError, SafetensorError) as error:  # such as a file of somebody else's
            logging.getLogger(__name__).warning("an embedding is computed again: %s can't be read: %s", path, error)
            return None

    def _write(self, prompt: str, conditioning: Conditioning) -> None:
        if path := self._path(prompt):
            tensors = {name: value.contiguous() for name, value in conditioning.items()}
            try:
                with whole(path) as temporary:
                    safetensors.torch.save_file(tensors, temporary)
            except (OSError, SafetensorError) as error:  # the run can do without
                logging.getLogger(__name__).warning("an embedding could not be kept in %s: %s", path.parent, error)

    def _path(self, prompt: str) -> Path | None:
        whole = "\0".join([prompt, *(picture.name for picture in pictures_of(prompt))])
        name = hashlib.sha256(whole.encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors" if self._folder else None


def _bytes(conditioning: Conditioning) -> int:
    return sum(value.nbytes for value in conditioning.values())


def fingerprint(parts: Sequence[Path], *facts: object) -> str:
    """Names files by their place, size and time, together with some facts."""
    files = sorted(path for part in parts for path in part.rglob("*") if path.is_file())
    seen = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((seen, facts)).encode()).hexdigest()[:32]
