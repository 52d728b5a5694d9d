"""How legibly a picture shows the prompt's text, as an OCR model reads it.

`ocr` is 1 - edit distance / length of the text, at least 0; `ocr_exact` is 1 if every character is correct. The text is
the prompt's field `text` if it has one, otherwise its quoted text, otherwise the whole prompt. The model is rapidocr's
PP-OCRv6. A picture of at most 64 pixels in height is read as one line of text. In a higher one, lines are detected
first, and read in order, with blanks in between.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein
from rapidocr import RapidOCR

from ..proto.prompt import fields_of
from ..proto.settings import RewardSettings
from .interface import Scorer, per_frame

LINE_SHAPE = (3, 48, 96)
"""Channels, height and least width to which the model scales a line, pixels; wider lines are scaled wider."""
BATCH = 16
LINE_HEIGHT = 64
"""Maximum pixels in the height of a picture that is one line."""
_LETTER = "[A-Za-zÀ-ɏͰ-ӿ]"  # of the scripts that have apostrophes
# In each, no two parts match the same character, so that the time is linear in the length of the prompt.
QUOTED = re.compile(
    "|".join(
        (
            r'(?<!\d)"([^"]*)"',  # not the sign for inches
            "[“„”]([^“„”]*)[“”]",
            "«([^«»]*)»",
            "»([^«»]*)«",
            "‹([^‹›]*)›",
            "「([^「」]*)」",
            "『([^『』]*)』",
            "＂([^＂]*)＂",
            f"[‘‚]((?:[^‘’‚]|(?<={_LETTER})’(?={_LETTER}))*)[’‘](?!{_LETTER})",
        )
    )
)
"""Text in quotes of any kind that can't be mistaken."""
SINGLE_QUOTED = re.compile(rf"(?<![\w'])'(?!n')((?:[^']|(?<={_LETTER})'(?={_LETTER}))*)'(?!\w)")
"""Text in straight single quotes, which are apostrophes too: rock 'n' roll, the dogs' house."""


class OcrScorer:
    """Gives the rewards `ocr` and `ocr_exact`."""

    def __init__(self, threads: int | None = None) -> None:
        """Loads the model, to use `threads` CPU threads (None: all)."""
        self._model = RapidOCR(
            params={
                "EngineConfig.onnxruntime.intra_op_num_threads": threads or -1,
                "Global.log_level": "error",
                "Rec.rec_img_shape": list(LINE_SHAPE),
                "Rec.rec_batch_num": BATCH,
            }
        )

    def read(self, media: npt.NDArray[np.uint8]) -> list[str]:
        """The text in each picture, without surrounding blanks; `media` is uint8 [n, height, width, 3]."""
        bgr = [np.ascontiguousarray(picture[..., ::-1]) for picture in media]
        if media.shape[1] > LINE_HEIGHT:
            found = [self._model(picture, use_det=True, use_cls=False, use_rec=True) for picture in bgr]
            return [" ".join(one.txts or ()).strip() for one in found]
        return [text.strip() for text in self._model.recognize_txt(bgr).txts]

    def __call__(self, media: npt.NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
        pairs = list(zip(self.read(media), map(target, prompts), strict=True))
        return {
            "ocr": np.array([similarity(read, wanted) for read, wanted in pairs]),
            "ocr_exact": np.array([float(read == wanted) for read, wanted in pairs]),
        }


def load_ocr(settings: RewardSettings, threads: int | None = None) -> Scorer:
    """The model comes with its library."""
    return per_frame(OcrScorer(threads))


def target(prompt: str) -> str:
    """The text that a prompt asks for.

    >>> target('a shop sign that says "OPEN"'), target("123"), target(Prompt("a number", {"text": 99}))
    ('OPEN', '123', '99')
    >>> target("the dog's sign says “IT'S OPEN”"), target("写着「开」的招牌")
    ("IT'S OPEN", '开')
    """
    text = fields_of(prompt).get("text")
    if text is not None and (text := str(text).strip()):
        return text
    for kind in (QUOTED, SINGLE_QUOTED):
        for found in kind.finditer(prompt):
            if quoted := "".join(found.groups(default="")).strip():
                return quoted
    return prompt.strip()


def similarity(read: str, wanted: str) -> float:
    """1 - edit distance / length of `wanted`, at least 0."""
    return max(0.0, 1 - Levenshtein.distance(read, wanted) / len(wanted))
