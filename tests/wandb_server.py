"""A stand-in for W&B's server, which has a run up to some step, and keeps the rows that are sent to it."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class WandbServer:
    """What it answers is what wandb asks for when it resumes a run that has been uploaded up to `last_step`."""

    def __init__(self, last_step: int) -> None:
        self.last_step = last_step
        self.rows: list[dict[str, Any]] = []
        self.address = ""

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/file_stream"):
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {})
            self.rows += [json.loads(row) for row in history.get("content", [])]
            return {"exitcode": None, "limits": {}}
        if not path.endswith("/graphql"):
            return {}
        asked = json.loads(body)
        project = {"id": "p", "name": "mine", "entity": {"id": "e", "name": "me"}}
        bucket = {
            "id": "x",
            "name": "run",
            "displayName": "run",
            "config": "{}",
            "historyLineCount": self.last_step + 1,
        }
        if "RunResumeStatus" in asked["query"]:
            tail = json.dumps([json.dumps({"_step": self.last_step, "_runtime": 1.0})])
            counts = {"logLineCount": 0, "eventsLineCount": 0, "historyTail": tail, "eventsTail": "[]", "tags": []}
            summary = {"summaryMetrics": "{}", "wandbConfig": '{"t": 1}'}
            return {"data": {"model": {**project, "bucket": {**bucket, **counts, **summary}}}}
        if "UpsertBucket" in asked["query"]:
            return {"data": {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": False}}}
        if "CreateRunFiles" in asked["query"]:
            files = [{"name": name, "uploadUrl": f"{self.address}/put"} for name in asked["variables"]["files"]]
            return {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}}
        viewer = {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        return {"data": {"viewer": viewer} if "iewer" in asked["query"] else {}}


@contextmanager
def wandb_server(last_step: int) -> Iterator[WandbServer]:
    """The server at its `address` within the block."""
    wandb = WandbServer(last_step)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_PUT(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            answer = json.dumps(wandb.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        wandb.address = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        yield wandb
        server.shutdown()
