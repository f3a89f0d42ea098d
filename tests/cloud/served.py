"""What the servers of ours that stand in for a provider share: HTTP, a log of what was asked, faults put in the way."""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.cloud.tripwire import Tripwire

HTML = b"<html><head><title>502 Bad Gateway</title></head><body>An error page of something in between.</body></html>"


@dataclass(frozen=True)
class Asked:
    """One request as it came over the wire."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    headers: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """In the form of `Provider.requests`."""
        told: dict[str, Any] = {"method": self.method, "path": self.path}
        if self.query:
            told["query"] = dict(self.query)
        return told | ({"body": self.body} if self.body is not None else {})


@dataclass
class Fault:
    """What happens to the next requests that match, instead of the answer."""

    method: str
    path: str
    """A regular expression, searched."""
    status: int = 200
    body: Any = None
    """JSON-ready, or bytes of anything."""
    performed: bool = False
    """The request is carried out first: an answer that is lost after success."""
    cut: bool = False
    """No answer at all: the connection is reset."""
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    met: int = 0


class Refused(Exception):
    """An answer that is an error: status and JSON-ready body."""

    def __init__(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, body)
        self.status, self.body, self.headers = status, body, dict(headers or {})


class Served:
    """Listens on 127.0.0.1 from `start` to `stop`; a provider's server overrides `answer`."""

    def __init__(self) -> None:
        self.log: list[Asked] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.tripwire = Tripwire()
        self._server = _QuietServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, asked: Asked) -> Any:
        """JSON-ready; `Refused` for an error. Called by one thread at a time."""
        raise NotImplementedError

    def name_of(self, asked: Asked) -> str:
        """What a request is called in tests that kill a client at it."""
        return f"{asked.method} {asked.path}"

    def forget_everything(self) -> None:
        """As if it had just been started; a provider's server forgets its things, too."""
        with self.lock:
            self.log.clear()
            self.faults.clear()
            self.tripwire = Tripwire()

    def sent(self, method: str, path: str = "") -> list[Asked]:
        return [asked for asked in self.log if asked.method == method and re.search(path, asked.path)]

    def _fault_for(self, asked: Asked) -> Fault | None:
        for fault in self.faults:
            if fault.met < fault.times and fault.method == asked.method and re.search(fault.path, asked.path):
                fault.met += 1
                return fault
        return None

    def respond(self, asked: Asked) -> tuple[int, Any, Mapping[str, str]] | None:
        """Status, body and headers; None: the connection is cut."""
        with self.lock:
            self.log.append(asked)
            fault = self._fault_for(asked)
            said: tuple[int, Any, Mapping[str, str]] = (0, None, {})
            self.tripwire.passing(self.name_of(asked), "before")
            if fault is None or fault.performed:
                try:
                    said = (200, self.answer(asked), {})
                except Refused as refused:
                    said = (refused.status, refused.body, refused.headers)
            self.tripwire.passing(self.name_of(asked), "after")
            if fault is None:
                return said
            return None if fault.cut else (fault.status, fault.body, fault.headers)


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed leaves a broken connection; everything else is told."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            answer = served.respond(self._asked())
            if answer is None:
                self._cut()
                return
            status, body, headers = answer
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(body, bytes) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def _asked(self) -> Asked:
            parts = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = {key: value for key, value in parse_qsl(parts.query) if key != "$alt"}
            return Asked(
                self.command or "", parts.path, query, json.loads(raw) if raw else None, dict(self.headers.items())
            )

        def _cut(self) -> None:
            """A reset, not an orderly end: SO_LINGER of 0 seconds."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Silent: `Served.log` holds what was asked."""

    return Handler
