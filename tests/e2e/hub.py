"""A small Hugging Face hub on the loopback: the routes that huggingface_hub 2 and datasets 5 call, and no others."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KINDS = ("models", "datasets")


@dataclass(frozen=True)
class Repo:
    """One repository at one commit."""

    kind: str
    """`models` or `datasets`."""
    name: str
    folder: Path

    @property
    def commit(self) -> str:
        return hashlib.sha1(f"{self.kind}/{self.name}".encode()).hexdigest()

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def about(self) -> dict[str, Any]:
        """What `/api/KIND/NAME` tells."""
        return {
            "_id": self.commit[:24], "id": self.name, "sha": self.commit, "private": False, "gated": False,
            "disabled": False, "tags": [], "downloads": 0, "likes": 0, "lastModified": "2026-11-01T00:00:00.000Z",
            "createdAt": "2026-11-01T00:00:00.000Z",
            "siblings": [{"rfilename": self._relative(path)} for path in self.files()],
        }  # fmt: skip

    def tree(self, below: str) -> list[dict[str, Any]] | None:
        """Entries of a folder; None where there is no such folder."""
        folder = self.folder / below
        if not folder.is_dir():
            return None
        return [self.entry(path) for path in sorted(folder.rglob("*"))]

    def entry(self, path: Path) -> dict[str, Any]:
        kind = "file" if path.is_file() else "directory"
        size = path.stat().st_size if path.is_file() else 0
        return {"type": kind, "path": self._relative(path), "oid": etag_of(path), "size": size}

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def etag_of(path: Path) -> str:
    return hashlib.sha1(path.read_bytes() if path.is_file() else str(path).encode()).hexdigest()


@dataclass
class Hub:
    """Where it listens and what was asked of it."""

    url: str
    repos: Mapping[tuple[str, str], Repo]
    asked: list[str] = field(default_factory=list)
    """`METHOD path → status`, in order."""
    unknown: list[str] = field(default_factory=list)
    """Asked for, and no route of ours."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
        parts = path.split("/")
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in KINDS:
            self._api(parts[1], "/".join(parts[2:4]), parts[4:])
        elif "resolve" in parts:
            kind, rest = ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
            self._file(kind, "/".join(rest[:2]), "/".join(rest[4:]))
        else:
            self._unknown()

    def _unknown(self) -> None:
        self.hub.unknown.append(self.path)
        self._send(501, b"{}", {})

    def _api(self, kind: str, name: str, rest: list[str]) -> None:
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            self._send(404, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif not rest or rest[0] == "revision":
            self._json(repo.about())
        elif rest[0] == "tree":
            entries = repo.tree("/".join(rest[2:]))
            self._json(entries) if entries is not None else self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self._unknown()

    def _file(self, kind: str, name: str, file: str) -> None:
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        path = repo.folder / file
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit})
            return
        headers = {"ETag": f'"{etag_of(path)}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        self._send(200, path.read_bytes(), headers)

    def _json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.hub.asked.append(f"{self.command} {self.path} → {status}")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: `asked` has it."""


@contextmanager
def serving(repos: list[Repo]) -> Iterator[Hub]:
    """The hub, in a thread, until the block ends."""
    hub = Hub("", {(repo.kind, repo.name): repo for repo in repos})
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
