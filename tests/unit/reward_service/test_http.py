"""The HTTP face: each form gives the scores that the models give, and whatever is wrong is said and harms nothing."""

import asyncio
import io
import json
import pickle
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from branchgrpo.proto.media import Media
from branchgrpo.proto.safetensors_codec import encode
from branchgrpo.proto.scoring import ScoreReply, ScoreRequest
from branchgrpo.proto.settings import RewardSettings
from branchgrpo.reward_service.app import create_app
from branchgrpo.reward_service.openapi import BINARY, FORM
from branchgrpo.reward_service.parsing import Limits
from branchgrpo.reward_service.scorers import Scorers
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from score_requests import MEDIA, PROMPTS, mean, post_bytes, post_form, refused, stored


def npy(shape: tuple[int, ...], descr: str = "|u1", data: bytes = b"") -> bytes:
    """A file whose header claims `shape`."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def png_header(width: int, height: int) -> bytes:
    """A file that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def redrawn(kind: str, times: int) -> bytes:
    """A JPEG, or an MPO with another one, whose last pass over the picture is there more than once."""
    file, image = io.BytesIO(), Image.new("RGB", (8, 8))
    more = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    image.save(file, kind, progressive=True, **more)
    data = file.getvalue()
    end = data.index(b"\xff\xd9")
    return data[:end] + data[data.rindex(b"\xff\xda", 0, end) : end] * times + data[end:]


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def facts(**changed: Any) -> dict[str, str]:
    return {"request": json.dumps({"id": "x", "prompts": ["1"], "rewards": ["mean"], **changed})}


@pytest.fixture(scope="module")
def scorers() -> Scorers:
    return Scorers({"ocr": RewardSettings(), "ocr_exact": RewardSettings()})


@pytest.fixture(scope="module")
def ocr(scorers: Scorers) -> TestClient:
    async def score(request: ScoreRequest) -> ScoreReply:
        return await asyncio.to_thread(scorers.score, request)

    return TestClient(create_app(score, ["ocr", "ocr_exact"]))


@pytest.mark.parametrize("kind", ["PNG", "npy"])
def test_a_form_of_files_gives_the_scores_of_the_models(scorers: Scorers, ocr: TestClient, kind: str) -> None:
    answer = post_form(ocr, [stored(pixels, kind) for pixels in MEDIA], PROMPTS, reward=["ocr_exact", "ocr"], id="ü 7")
    direct = scorers.score(ScoreRequest(media=Media(MEDIA), prompts=PROMPTS, rewards=["ocr", "ocr_exact"]))
    assert answer.json() == {"id": "ü 7", "scores": {name: list(values) for name, values in direct.scores.items()}}
    assert answer.json()["scores"]["ocr_exact"] == [1, 0, 1]


def test_safetensors_give_the_scores_of_the_models(scorers: Scorers, ocr: TestClient) -> None:
    request = ScoreRequest(media=Media(MEDIA), prompts=PROMPTS, rewards=["ocr"], id="x")
    direct = scorers.score(request)
    for kind in BINARY:
        answer = post_bytes(ocr, request.to_bytes(), kind)
        reply = ScoreReply.from_bytes(answer.content)
        assert answer.headers["content-type"] == kind
        assert reply.id == "x"
        assert list(reply.scores) == ["ocr"]
        np.testing.assert_array_equal(reply.scores["ocr"], direct.scores["ocr"])
    answer = post_bytes(ocr, request.to_bytes(), accept="application/json, */*")
    assert answer.json() == {"id": "x", "scores": {"ocr": list(direct.scores["ocr"])}}


def test_an_array_of_pictures_and_a_picture_make_one_batch(ocr: TestClient) -> None:
    answer = post_form(ocr, [stored(MEDIA[:2], "npy"), stored(MEDIA[2], "JPEG")], PROMPTS)
    assert answer.json()["scores"]["ocr_exact"] == [1, 0, 1]


GREY = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        Image.fromarray(GREY.astype(np.uint16) * 257),
        Image.fromarray(GREY).convert("RGBA"),
        Image.fromarray(GREY).convert("P"),
    ],
    ids=lambda image: image.mode,
)
def test_pictures_of_every_mode_are_scored_as_rgb(small: TestClient, image: Image.Image) -> None:
    answer = post_form(small, [stored(image)], ["p"])
    assert answer.json()["scores"]["mean"] == pytest.approx([GREY.mean()])


def test_fortran_order_is_read(small: TestClient) -> None:
    answer = post_form(small, [stored(np.asfortranarray(MEDIA[0, :, :40]), "npy")], ["p"])
    assert answer.json()["scores"]["mean"] == pytest.approx([MEDIA[0, :, :40].mean()])


PNG = stored(np.zeros((8, 8, 3), np.uint8))
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("files", "prompts", "status", "named"),
    [
        ([], ["p"], 422, ["media is empty"]),
        ([npy((0, 8, 8, 3))], [], 422, ["media[0]", "[0, 8, 8, 3]"]),
        ([PNG, PNG], ["p"], 422, ["2 media", "1 prompts"]),
        ([PNG], ["p", "q"], 422, ["1 media", "2 prompts"]),
        ([PNG, PNG], ["p", " \n"], 422, ["prompts[1]", "blank"]),
        ([PNG, stored(GREY[:4])], ["p", "q"], 422, ["media[1] is 4 x 8", "8 x 8"]),
        ([PNG, b"GIF89a"], ["p", "q"], 422, ["media[1]", "PNG", "JPEG", ".npy"]),
        ([b""], ["p"], 422, ["media[0]"]),
        ([pickle.dumps(MEDIA)], ["p"], 422, ["media[0]"]),
        ([stored(NOISE)[:-2000]], ["p"], 422, ["media[0]", "truncated"]),
        ([stored(NOISE, "JPEG")[:-500]], ["p"], 422, ["media[0]", "truncated"]),
        ([npy((8, 8, 3), data=bytes(100))], ["p"], 422, ["media[0]", "truncated"]),
        ([npy((10**6, 10**6, 3))], ["p"], 422, ["media[0]", "truncated"]),
        ([npy((-2, -2, 3))], ["p"], 422, ["media[0]", "[-2, -2, 3]"]),
        ([stored(np.zeros((8, 8, 4), np.uint8), "npy")], ["p"], 422, ["[8, 8, 4]", "uint8 [height, width, 3]"]),
        ([stored(np.zeros((8, 8, 3), np.float32), "npy")], ["p"], 422, ["float32", "uint8"]),
        ([npy((1,), "|O", pickle.dumps([1]))], ["p"], 422, ["media[0]", "pickled"]),
        ([b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"-" * 9000], ["p"], 422, ["media[0]"]),
        ([png_header(1, 2**20)], ["p"], 422, ["1048576 x 1", "64 times"]),
        ([png_header(128, 128)], ["p"], 413, ["128 x 128", "4096 pixels"]),
        ([png_header(2**15, 2**15)], ["p"], 413, ["media[0]", "pixels"]),
        ([npy((5, 8, 8, 3), data=bytes(960))], ["p"] * 4, 413, ["5 pictures", "4"]),
        ([PNG] * 5, ["p"], 413, ["Too many files", "4"]),
        ([PNG], ["p"] * 9, 413, ["Too many fields", "6"]),
        ([png_header(64, 64)], ["p"], 422, ["media[0]"]),
        ([stored(np.zeros((4, 65, 65, 3), np.uint8), "npy")], ["p"] * 4, 413, ["bytes", "50000"]),
    ],
)
def test_bad_pictures_are_refused(
    small: TestClient, files: list[bytes], prompts: list[str], status: int, named: list[str]
) -> None:
    refused(post_form(small, files, prompts), status, *named)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_jpeg_of_many_scans_is_refused(small: TestClient, kind: str) -> None:
    assert Image.open(io.BytesIO(redrawn(kind, 200))).format == kind
    assert post_form(small, [redrawn(kind, 9)], ["p"]).status_code == 200
    refused(post_form(small, [redrawn(kind, 200)], ["p"]), 422, "scans", "at most 64")


def test_as_much_as_the_limits_allow_is_scored_and_no_more(small: TestClient) -> None:
    files = [stored(np.zeros((64, 64, 3), np.uint8))] * 4
    assert post_form(small, files, ["p"] * 4).status_code == 200
    tight = TestClient(create_app(mean, ["mean"], Limits(bytes=20_000)))
    assert post_form(tight, files[:1], ["p"]).status_code == 200
    refused(post_form(tight, files, ["p"] * 4), 413, "24576 bytes", "20000")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"reward": ["mean", "beauty"]}, ["unknown reward 'beauty'", "there are mean"]),
        ({"promt": "p"}, ["unknown field 'promt'", "prompt"]),
        ({"id": ["a", "b"]}, ["id", "2 times"]),
        ({"media": "text"}, ["media", "file"]),
    ],
)
def test_bad_fields_are_refused(small: TestClient, fields: dict[str, Any], named: list[str]) -> None:
    refused(post_form(small, [PNG], ["p"], **fields), 422, *named)


def test_a_prompt_must_be_text(small: TestClient) -> None:
    files = [("media", ("0.png", PNG)), ("prompt", ("0.txt", b"p"))]
    refused(small.post("/v1/score", files=files), 422, "prompt", "text")


PART = b'--b\r\nContent-Disposition: form-data; name="id"\r\n\r\n%s\r\n--b--\r\n'


@pytest.mark.parametrize(
    ("kind", "body", "status", "named"),
    [
        (FORM, b"", 400, ["boundary"]),
        (f"{FORM}; boundary=b", b"no form", 400, []),
        (f"{FORM}; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", 400, ["name"]),
        (f"{FORM}; boundary=b; charset=undefined", PART % b"x", 400, ["charset"]),
        (f"{FORM}; boundary=b; charset=utf-7", PART % b"+2AA-", 422, []),  # half a surrogate pair
        ("application/json", b"{}", 415, ["application/json", *BINARY, FORM]),
        ("", b"", 415, [FORM]),
        (BINARY[0], b"", 400, ["safetensors"]),
        (BINARY[0], b"\xff" * 100, 400, ["safetensors"]),
        (BINARY[1], pickle.dumps({"media": MEDIA}), 400, ["safetensors"]),
        (BINARY[0], safetensors({"media": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"0"), 400, ["F4"]),
        (
            BINARY[0],
            safetensors({"media": {"dtype": "U8", "shape": [0, 2**62, 2**62, 3], "data_offsets": [0, 0]}}),
            400,
            [],
        ),
    ],
)
def test_malformed_bodies_are_refused(small: TestClient, kind: str, body: bytes, status: int, named: list[str]) -> None:
    refused(post_bytes(small, body, kind), status, *named)


def test_a_long_text_in_a_form_is_too_large() -> None:
    client = TestClient(create_app(mean, ["mean"]))
    refused(post_bytes(client, PART % bytes(2**20 + 1), f"{FORM}; boundary=b"), 413, "Part exceeded", "1024KB")
    refused(post_bytes(client, PART % bytes(2**20), f"{FORM}; boundary=b"), 422, "id")


ONE = np.zeros((1, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("media", "header", "status", "named"),
    [
        (ONE[0], facts(), 422, ["uint8 [8, 8, 3]", "uint8 [n, height, width, 3]"]),
        (ONE.astype(np.float32), facts(), 422, ["float32", "uint8"]),
        (ONE[:0], facts(prompts=[]), 422, ["empty"]),
        (ONE[:, :0], facts(), 422, ["uint8 [1, 0, 8, 3]"]),
        (ONE[:, None][:, :0], facts(), 422, ["uint8 [1, 0, 8, 8, 3]"]),
        (ONE, facts(prompts=["1", "2"]), 422, ["1 media", "2 prompts"]),
        (ONE, facts(prompts="1"), 422, ["prompts", "'1'", "array"]),
        (ONE, facts(prompts=[1]), 422, ["prompts.0", "'1'", "string"]),
        (ONE, facts(prompts=None), 422, ["prompts", "array"]),
        (ONE, facts(prompts=["\ud800"]), 422, []),
        (ONE, facts(id=7), 422, ["id", "'7'", "string"]),
        (ONE, facts(more=7), 422, ["more", "'7'"]),
        (ONE, facts(rewards=[]), 422, ["rewards is empty"]),
        (ONE, facts(rewards=["beauty"]), 422, ["unknown reward 'beauty'", "there are mean"]),
        (ONE, {"request": "{"}, 422, ["JSON"]),
        (ONE, {"request": "[" * 10_000}, 422, ["JSON"]),
        (ONE, {"other": "{}"}, 422, ["'media, other'", "'request'"]),
        (np.zeros((1, 80, 80, 3), np.uint8), facts(), 413, ["80 x 80", "4096"]),
        (np.zeros((5, 8, 8, 3), np.uint8), facts(prompts=["p"] * 5), 413, ["5 pictures", "4"]),
    ],
)
def test_bad_requests_in_safetensors_are_refused(
    small: TestClient, media: np.ndarray, header: dict[str, str], status: int, named: list[str]
) -> None:
    refused(post_bytes(small, encode({"media": media}, header)), status, *named)


@pytest.mark.parametrize(
    ("outcome", "named"),
    [
        (ValueError("bad weather at 10.1.2.3"), "ValueError: bad weather at 10.1.2.3"),
        (ScoreReply(), "'mean' was asked for and not scored"),
        (ScoreReply(scores={"mean": np.array([np.nan])}), "finite"),
        (ScoreReply(scores={"mean": np.array([1.0, 2.0])}), "1 pictures"),
    ],
    ids=str,
)
def test_no_score_is_made_up_when_the_models_fail(
    outcome: Exception | ScoreReply, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def score(_: ScoreRequest) -> ScoreReply:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    client = TestClient(create_app(score, ["mean"]))
    for answer in (post_form(client, [PNG], ["p"]), post_bytes(client, encode({"media": ONE}, facts()))):
        refused(answer, 503, "no score was made")
        assert named not in answer.text
        assert answer.json()["error"].split()[-1] in caplog.text
        assert named in caplog.text


def test_what_is_served_and_documented(ocr: TestClient) -> None:
    assert ocr.get("/v1/rewards").json() == ["ocr", "ocr_exact"]
    assert ocr.get("/healthz").json() == {"status": "ok"}
    refused(ocr.get("/v1/score"), 405)
    refused(ocr.get("/nowhere"), 404)
    assert ocr.get("/docs").status_code == 200
    paths = ocr.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/v1/score", "/v1/rewards", "/healthz"}
    post = paths["/v1/score"]["post"]
    assert set(post["requestBody"]["content"]) == {FORM, *BINARY}
    assert post["requestBody"]["content"][FORM]["schema"]["properties"]["reward"]["items"]["enum"] == [
        "ocr",
        "ocr_exact",
    ]
    assert set(post["responses"]) == {"200", "400", "401", "408", "413", "415", "422", "429", "503"}
    assert set(post["responses"]["200"]["content"]) == {"application/json", *BINARY}
    assert "curl" in post["description"]


def test_validation_errors_of_added_paths_have_the_same_shape() -> None:
    app: FastAPI = create_app(mean, ["mean"])

    @app.get("/added")
    async def added(number: int) -> int:
        return number

    refused(TestClient(app).get("/added?number=x"), 422, "number", "'x'", "integer")


def test_the_documentation_page_needs_no_internet(small: TestClient) -> None:
    page = small.get("/docs").text
    files = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert any(file.endswith("swagger-ui-bundle.js") for file in files)
    assert all(file.startswith("/") and small.get(file).status_code == 200 for file in files)
    assert "//" not in "".join(files)
