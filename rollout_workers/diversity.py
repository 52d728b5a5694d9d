"""Diversity: how much the pictures of one prompt differ."""

import math

import numpy as np
import numpy.typing as npt

from ..proto.media import Pictures


class Diversity:
    """The diversity of the pictures added so far: the standard deviation of a pixel's channel over them, root mean
    square over the picture, with channels from 0 to 1.

    It falls where a policy comes to draw one picture for a prompt, whatever reward that gets. Sums are whole numbers,
    so it doesn't matter in which parts the pictures come.
    """

    def __init__(self) -> None:
        self.pictures = 0
        self._sums: npt.NDArray[np.int64] | int = 0
        self._squares = 0

    def add(self, looks: Pictures) -> None:
        """Take in what is seen of leaves (`Media.looks`), uint8 [n, height, width, 3], or of clips."""
        self.pictures += len(looks)
        self._sums = self._sums + looks.sum(axis=0, dtype=np.int64)
        self._squares += int(np.square(looks, dtype=np.uint16).sum(dtype=np.int64))  # 255 squared fits

    def value(self) -> float:
        """0 for fewer than two pictures."""
        if self.pictures < 2:
            return 0.0
        sums = np.asarray(self._sums)
        spread = self._squares - int(np.square(sums).sum()) / self.pictures
        return math.sqrt(max(spread, 0.0) / ((self.pictures - 1) * sums.size)) / 255
