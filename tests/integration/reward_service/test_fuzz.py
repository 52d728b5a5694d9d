"""A service of its own, under fire: from its own OpenAPI document, and by bytes made to harm.

Whatever is sent, there is no 5xx, the process lives, answers are as documented, and memory stays.
"""

import json
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from branchgrpo.proto.safetensors_codec import encode
from fuzzing import (
    BINARY,
    FAST,
    GROWTH,
    IMAGE,
    MEDIA,
    REQUEST,
    RNG,
    Service,
    chunk,
    fire,
    mutated,
    overwritten,
    recrc,
    stored,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin


def test_requests_are_answered_as_documented(service: Service) -> None:
    assert fire(service, 100, range(1)) >= 200
    assert service.answered[200] >= 20
    service.sound()


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (8, 8), depth: int = 8, color: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in [(b"IHDR", head), *chunks, (b"IEND", b"")])


def redrawn(times: int) -> bytes:
    """A JPEG whose last pass over the picture, a few bytes, is there many times."""
    data = stored(IMAGE, "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * times + data[-2:]


ROWS = zlib.compress((b"\0" + bytes(24)) * 8)
ZEROS = zlib.compress(bytes(50 * 2**20), 9)
FRAMES = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(3)]
TEXTS = PngImagePlugin.PngInfo()
TEXTS.add_itxt("a" * 70, "\u2028" * 1000, zip=True)
EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010E] = "x" * 60_000
MASK = Image.new("P", (8, 8))
MASK.putpalette(bytes(range(256)) * 3)
PICTURES = {
    "plain": (png((b"IDAT", ROWS)), 200),
    "more data than pixels": (png((b"IDAT", ZEROS)), 200),
    "text that unpacks to 50 MB": (png((b"zTXt", b"a\0\0" + ZEROS), (b"IDAT", ROWS)), 422),
    "profile that unpacks to 50 MB": (png((b"iCCP", b"a\0\0" + ZEROS), (b"IDAT", ROWS)), None),
    "huge": (png((b"IDAT", ROWS), size=(2**31 - 1, 2**31 - 1)), 413),
    "huge and square": (png((b"IDAT", ROWS), size=(60_000, 60_000)), 413),
    "empty": (png((b"IDAT", ROWS), size=(0, 8)), 422),
    "wide": (png((b"IDAT", ROWS), size=(16_000, 1)), 422),
    "of no depth": (png((b"IDAT", ROWS), depth=3), 422),
    "palette that is missing": (png((b"IDAT", ROWS), color=3), None),
    "short": (png((b"IDAT", ROWS[:5])), 422),
    "without data": (png(), 422),
    "animated": (stored(FRAMES[0], save_all=True, append_images=FRAMES[1:]), 200),
    "animated, with 2 ** 32 - 1 frames": (png((b"acTL", b"\xff" * 8), (b"IDAT", ROWS)), 200),
    "16 bit": (stored(Image.fromarray(MEDIA[0, ..., 0].astype(np.uint16) * 257)), 200),
    "1 bit": (stored(IMAGE.convert("1")), 200),
    "gray and alpha": (stored(IMAGE.convert("LA")), 200),
    "palette with transparency": (stored(MASK, transparency=bytes(range(256))), 200),
    "with text": (stored(IMAGE, pnginfo=TEXTS), 200),
    "CMYK": (stored(IMAGE.convert("CMYK"), "JPEG"), 200),
    "gray JPEG": (stored(IMAGE.convert("L"), "JPEG"), 200),
    "turned": (stored(IMAGE, "JPEG", exif=EXIF), 200),
    "progressive": (stored(IMAGE, "JPEG", progressive=True), 200),
    "JPEG that is drawn 1,000 times": (redrawn(1000), 422),
    "GIF": (stored(IMAGE, "GIF"), 422),
    "TIFF": (stored(IMAGE, "TIFF"), 422),
    "zip": (b"PK\x03\x04" + bytes(100), 422),
}


@pytest.mark.parametrize(("data", "status"), PICTURES.values(), ids=PICTURES.keys())
def test_pictures_of_every_kind(service: Service, data: bytes, status: int | None) -> None:
    before = service.memory
    answer = service.picture(data)
    assert status in (None, answer.status_code), answer.text
    assert service.memory - before < GROWTH


@FAST
@given(data=mutated())
def test_mutated_pictures(service: Service, data: bytes) -> None:
    service.picture(data)
    service.picture(recrc(data))


# Safetensors made to harm
def tensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def described(shape: list[int], start: int, end: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FACTS = json.dumps({"id": "x", "prompts": ["1"], "rewards": ["mean"]})
PIXEL = described([1, 1, 1, 3], 0, 3)


def headed(**entries: Any) -> bytes:
    return json.dumps({"__metadata__": {"request": FACTS}, "media": PIXEL, **entries}).encode()


def asked(**facts: Any) -> bytes:
    return tensors(headed(__metadata__={"request": json.dumps({**json.loads(FACTS), **facts})}), b"abc")


SAFETENSORS = {
    "sound": (tensors(headed(), b"abc"), 200),
    "overlapping": (tensors(headed(more=described([3], 1, 4)), b"abcd"), 400),
    "the same bytes twice": (tensors(headed(more=described([3], 0, 3)), b"abc"), 400),
    "a hole": (tensors(headed(media=described([1, 1, 1, 3], 2, 5)), b"abcde"), 400),
    "offsets that run backwards": (tensors(headed(media=described([1, 1, 1, 3], 3, 0)), b"abc"), 400),
    "offsets below zero": (tensors(headed(media=described([1, 1, 1, 3], -3, 0)), b"abc"), 400),
    "offsets beyond 64 bits": (tensors(headed(media=described([1, 1, 1, 3], 0, 2**65)), b"abc"), 400),
    "a shape that overflows": (tensors(headed(media=described([2**33, 2**33, 1, 3], 0, 3)), b"abc"), 400),
    "more after the end": (tensors(headed(), b"abcdef"), 400),
    "gigantic header": (tensors(headed(), b"abc", length=2**63), 400),
    "header as long as can be": (tensors(headed(), b"abc", length=2**64 - 1), 400),
    "header of no length": (tensors(b"", b"abc"), 400),
    "twice the same tensor": (tensors(headed().replace(b'"media"', b'"media": 1, "media"'), b"abc"), 400),
    "twice the same header": (
        tensors(headed().replace(b'{"__meta', b'{"__metadata__": {"request": "{}"}, "__meta', 1), b"abc"),
        400,
    ),
    "deep": (tensors(b'{"a":' * 30_000), 400),
    "deep in the facts": (asked(prompts=json.loads("[" * 300 + "]" * 300)), 422),
    "not UTF-8": (tensors(headed() + b"\xff\xfe", b"abc"), 400),
    "lone surrogates": (asked(prompts=["\ud800"]), 422),
    "a surrogate as key": (tensors(b'{"\\ud800": 1}'), 400),
    "NaN": (encode({"media": np.full((1, 2, 2, 3), np.nan, np.float32)}, {"request": FACTS}), 422),
    "bool": (encode({"media": np.zeros((1, 2, 2, 3), bool)}, {"request": FACTS}), 422),
    "an id of many lines": (asked(id="x\nERROR all is lost"), 422),
    "an id that paints": (asked(id="\x1b[31m"), 422),
    "a long id": (asked(id="x" * 201), 422),
    "a long prompt": (asked(prompts=["x" * 10_001]), 422),
    "quotes": (asked(prompts=['"' * 10_000]), 200),
    "a quote that never ends": (asked(prompts=['"' + " a" * 4_999], rewards=["ocr"]), 200),
    "no numbers": (asked(prompts=[1e400]), 422),
    "many rewards": (asked(rewards=["mean"] * 10_000), 200),
    "many tensors": (tensors(headed(**{str(n): described([0], 3, 3) for n in range(2000)}), b"abc"), 200),
}


@pytest.mark.parametrize(("body", "status"), SAFETENSORS.values(), ids=SAFETENSORS.keys())
def test_safetensors_of_every_kind(service: Service, body: bytes, status: int) -> None:
    before, start = service.memory, time.monotonic()
    answer = service.post(body, BINARY)
    assert answer.status_code == status, answer.text
    assert service.memory - before < GROWTH
    assert time.monotonic() - start < 30


@FAST
@given(
    place=st.integers(0, 300),
    patch=st.binary(max_size=16) | st.sampled_from([b"[" * 99, b"\xff" * 8, b'"\\ud800"', b"-1", b"1e999"]),
    length=st.none() | st.integers(0, 400),
)
def test_mutated_safetensors(service: Service, place: int, patch: bytes, length: int | None) -> None:
    service.post(overwritten(REQUEST, place, patch)[:length], BINARY)


@FAST
@given(
    place=st.integers(0, 300),
    patch=st.binary(max_size=20) | st.sampled_from([b"\r\n--b", b"\r\n--b--", b'name="media"', b"\r\n" * 50, b"--"]),
    length=st.none() | st.integers(0, 400),
)
def test_mutated_forms(service: Service, place: int, patch: bytes, length: int | None) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    whole = part % (b"prompt", b"", b"p") + part % (b"media", b'; filename="a"', stored(IMAGE)) + b"--b--\r\n"
    service.post(overwritten(whole, place, patch)[:length], "multipart/form-data; boundary=b")
