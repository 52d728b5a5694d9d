"""The pages' server: what it shows of run folders, whole or not, and what it never gives away."""

import json
import os
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from branchgrpo.cluster.view.export import export
from branchgrpo.cluster.view.recipe_page import flat
from branchgrpo.cluster.view.runs import Runs
from branchgrpo.cluster.view.sections import SECTIONS
from branchgrpo.cluster.view.server import create_app
from branchgrpo.proto.errors import InputError
from fastapi.testclient import TestClient

Make = Callable[..., Path]


def cells(page: str, name: str) -> list[str]:
    """The texts in the row of a run."""
    row = re.search(rf'<tr id="run-{re.escape(name)}">.*?</tr>', page, re.DOTALL)
    assert row
    texts = re.findall(r"<td.*?>(.*?)</td>", row[0], re.DOTALL)
    return [" ".join(unescape(re.sub(r"<.*?>", "", text)).split()) for text in texts]


def test_the_table_shows_what_the_folders_hold(make_run: Make, client: TestClient) -> None:
    make_run("one")
    make_run("study/tuning/two", iterations=7)
    page = client.get("/").text
    assert cells(page, "one")[1:9] == ["one", "finished", "branch_grpo", "3 / 3", "ocr", "0.250", "0.750", "10.0 s"]
    assert cells(page, "study/tuning/two")[4] == "7 / 7"


def test_a_run_by_itself_has_its_page_at_once(make_run: Make) -> None:
    client = TestClient(create_app(Runs(make_run("one"))), base_url="http://127.0.0.1")
    answer = client.get("/")
    assert answer.url.path == "/overview/one"
    assert "iteration 3 of 3" in " ".join(answer.text.split())


def test_a_folder_whose_name_is_not_utf_8_is_shown(make_run: Make, client: TestClient, tmp_path: Path) -> None:
    folder = make_run("one")
    folder = folder.rename(folder.with_name(os.fsdecode(b"caf\xe9")))
    assert cells(client.get("/").text, "caf\ufffd")[4] == "3 / 3"
    for section in SECTIONS:
        assert client.get(f"/{section}/caf\ufffd").status_code == 200
    alone = TestClient(create_app(Runs(folder)), base_url="http://127.0.0.1")
    assert "iteration 3 of 3" in " ".join(alone.get("/").text.split())
    export(*Runs(folder).all(), tmp_path / "page.html")
    assert "<title>caf\ufffd" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("file", ["recipe.yaml", "metrics.jsonl", "evaluations.jsonl", "state.json", "changes.jsonl"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00", b"[1]\n", b'{"iteration": "x"}\n', b"null"])
def test_broken_files_leave_the_rest_to_see(
    make_run: Make, client: TestClient, file: str, content: bytes | None
) -> None:
    folder = make_run("one")
    make_run("two")
    if content is None:
        (folder / file).unlink(missing_ok=True)
    else:
        (folder / file).write_bytes(content)
    page = client.get("/").text
    assert cells(page, "two")[7] == "0.750"
    if file != "evaluations.jsonl":
        assert cells(page, "one")[7] == "0.750"
    for section in SECTIONS:
        assert client.get(f"/{section}/one").status_code == 200


def test_a_half_written_line_is_told_of(make_run: Make, client: TestClient) -> None:
    folder = make_run("one")
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write('{"iteration": 4, "oc')
    page = client.get("/").text
    assert cells(page, "one")[1] == "one evaluations.jsonl line 3 can't be read"
    assert cells(page, "one")[7] == "0.750"


def test_names_of_files_are_text(make_run: Make, client: TestClient) -> None:
    make_run("<script>alert(1)<")
    page = client.get("/").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page


def test_paths_stay_within_the_folder_of_runs(make_run: Make, client: TestClient, tmp_path: Path) -> None:
    folder = make_run("one")
    outside = make_run("../secret")
    (tmp_path / "runs" / "linked").symlink_to(outside)
    (folder / "changes.jsonl").symlink_to(outside / "metrics.jsonl")
    names = [run.name for run in Runs(tmp_path / "runs").all()]
    assert names == ["one"]
    assert Runs(tmp_path / "runs").open("one").lines("changes") == []
    for name in ("../secret", "..%2fsecret", "%2e%2e/secret", "linked", "one/../../secret", "/etc/passwd"):
        for section in ("overview", "picture"):
            assert client.get(f"/{section}/{name}?of=x").status_code == 404
    assert client.get("/static/..%2fserver.py").status_code == 404


def test_nothing_is_written(make_run: Make, client: TestClient) -> None:
    folder = make_run("one")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    for address in ("/", "/overview/one", "/trees/one"):
        assert client.get(address).status_code == 200
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert client.request(method, address).status_code == 405
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before


def test_a_page_is_sent_again_only_when_its_run_changes(make_run: Make, client: TestClient) -> None:
    folder = make_run("one")
    for address in ("/", "/overview/one"):
        tag = client.get(address).headers["etag"]
        assert client.get(address, headers={"if-none-match": tag}).status_code == 304
        with (folder / "evaluations.jsonl").open("a") as file:
            file.write(json.dumps({"iteration": 9, "ocr": 1.0, "ocr_exact": 1.0}) + "\n")
        assert client.get(address, headers={"if-none-match": tag}).status_code == 200
    assert cells(client.get("/").text, "one")[7] == "1.000"


def test_only_the_token_opens_the_pages(make_run: Make, tmp_path: Path) -> None:
    make_run("one")
    client = TestClient(create_app(Runs(tmp_path / "runs"), "secret"), base_url="http://cluster.example")
    for address in ("/", "/overview/one", "/static/view.js", "/picture/one?of=x"):
        assert client.get(address).status_code == 401
        assert client.get(address, auth=("me", "wrong")).status_code == 401
    assert client.get("/", auth=("me", "secret")).status_code == 200
    assert client.get("/", headers={"authorization": "Bearer secret"}).status_code == 200


def test_without_a_token_other_hosts_names_are_refused(make_run: Make, client: TestClient) -> None:
    make_run("one")
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:8080"}).status_code == 200


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is no folder"):
        Runs(tmp_path / "nowhere")


def test_settings_are_shown_as_recipes_have_them() -> None:
    """A whole number may have been written as 60 and as 60.0."""
    settings = {"whole": 60.0, "same": 60, "half": 0.5, "yes": True, "none": None, "text": "a b", "list": [1, "x"]}
    texts = {
        "whole": "60",
        "same": "60",
        "half": "0.5",
        "yes": "true",
        "none": "null",
        "text": "a b",
        "list": '[1, "x"]',
    }
    assert flat({"section": settings}) == {f"section.{name}": text for name, text in texts.items()}
