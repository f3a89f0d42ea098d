"""As much of a W&B server as wandb 0.31 talks to: GraphQL, the file stream and file uploads, on the loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "storytellers"


@dataclass
class Server:
    url: str = ""
    upserts: list[dict[str, Any]] = field(default_factory=list)
    """Variables of each upsertBucket."""
    streamed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Run id → history rows as they came."""
    lives: list[str] = field(default_factory=list)
    """The host that began, for each time a client began or resumed a run."""
    asked: list[str] = field(default_factory=list)

    @property
    def run_ids(self) -> set[str]:
        return {one["name"] for one in self.upserts} | set(self.streamed)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: Server

    def do_GET(self) -> None:
        self._send({})

    def do_PUT(self) -> None:
        self._body()
        self._send({})

    def do_POST(self) -> None:
        body = self._body()
        self.server_.asked.append(f"POST {self.path} {body[:300]!r}")
        if self.path.endswith("/graphql"):
            self._graphql(json.loads(body))
        elif self.path.endswith("/file_stream"):
            self._stream(self.path.split("/")[-2], json.loads(body))
        else:
            self._send({})

    def _graphql(self, asked: dict[str, Any]) -> None:
        query, told = asked["query"], asked.get("variables") or {}
        if "upsertBucket" in query:
            self.server_.upserts.append(told)
            if told.get("host"):  # later upserts of a client leave it out
                self.server_.lives.append(told["host"])
            project = {"id": "UHJvamVjdA==", "name": told.get("project"), "entity": {"id": "RQ==", "name": ENTITY}}
            bucket = {
                "id": "QnVja2V0", "name": told["name"], "displayName": told.get("displayName") or told["name"],
                "description": None, "config": "{}", "sweepName": None, "historyLineCount": 0,
                "project": project,
            }  # fmt: skip
            self._send({"data": {"upsertBucket": {"bucket": bucket, "inserted": len(self.server_.upserts) == 1}}})
        elif "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server_.url}/upload/{name}"} for name in told["files"]]
            made = {"runID": "QnVja2V0", "uploadHeaders": [], "files": files}
            self._send({"data": {"createRunFiles": made}})
        elif "viewer" in query:
            viewer = {"id": "VQ==", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
            self._send({"data": {"viewer": viewer, "serverInfo": None}})
        else:
            self._send({"data": {}})

    def _stream(self, run_id: str, told: dict[str, Any]) -> None:
        history = told.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        self.server_.streamed.setdefault(run_id, []).extend(json.loads(line) for line in history)
        self._send({"limits": {}})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: `asked` has it."""


@contextmanager
def serving() -> Iterator[Server]:
    """The server, in a thread, until the block ends."""
    told = Server()
    handler = type("Handler", (_Handler,), {"server_": told})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        told.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield told
        finally:
            server.shutdown()
            thread.join()
