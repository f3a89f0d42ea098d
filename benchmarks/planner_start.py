"""`dtrain plan` beside `accelerate estimate-memory`, each as a cold command: `python -m benchmarks.planner_start`.

accelerate asks the hub for a model before it does anything; a loopback server answers for the hub with the model's
config.json, and each run has an empty cache. Both say what a model needs; only one says what a training step needs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dtrain.models.catalogue import catalogued

MODEL = "meta-llama/Llama-3.1-8B"
RUNS = 5
TO_REACH = 1 / 8
COMMIT = "0" * 40
TEXT = f"base_model: {MODEL}\ndatasets: [{{path: no/data, type: alpaca}}]\n"


class Hub(BaseHTTPRequestHandler):
    """What the hub says of one model: that it exists, and its config.json."""

    config = json.dumps({**(catalogued(MODEL) or {}), "architectures": ["LlamaForCausalLM"]}).encode()

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        body = self._body()
        self.send_response(404 if body is None else 200)
        for name, value in {"X-Repo-Commit": COMMIT, "ETag": '"1"', "Content-Length": str(len(body or b""))}.items():
            self.send_header(name, value)
        if body is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if with_body and body:
            self.wfile.write(body)

    def _body(self) -> bytes | None:
        if self.path.endswith("/config.json"):
            return self.config
        if self.path.startswith("/api/models/"):
            files = [{"rfilename": "config.json"}]
            told: dict[str, Any] = {"id": MODEL, "sha": COMMIT, "library_name": "transformers", "tags": []}
            return json.dumps({**told, "siblings": files, "private": False, "config": {}}).encode()
        return None

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the table is what is read."""


@contextmanager
def hub() -> Iterator[str]:
    """The server's address while it answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def seconds(command: Sequence[str], settings: dict[str, str]) -> float:
    """Wall seconds of one run with an empty cache. RuntimeError with its last words if it fails."""
    with tempfile.TemporaryDirectory() as cache:
        before = time.perf_counter()
        told = subprocess.run(
            command, env={**os.environ, "HF_HOME": cache, **settings}, capture_output=True, text=True, check=False
        )
        spent = time.perf_counter() - before
    if told.returncode:
        raise RuntimeError(f"{command[0]} failed: {(told.stderr or told.stdout).strip()[-400:]}")
    return spent


def main() -> None:
    beside = Path(sys.executable).parent
    with hub() as address, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.yaml"
        file.write_text(TEXT, encoding="utf-8")
        commands = {
            "dtrain plan": [str(beside / "dtrain"), "plan", str(file), "--profile", "a100x8"],
            "accelerate estimate-memory": [
                str(beside / "accelerate"), "estimate-memory", MODEL, "--library_name", "transformers",
            ],
        }  # fmt: skip
        # in turn, so that a busy machine is as busy for the one as for the other
        rounds = [{name: seconds(one, {"HF_ENDPOINT": address}) for name, one in commands.items()} for _ in range(RUNS)]
    medians = {name: statistics.median(one[name] for one in rounds) for name in commands}
    for name, spent in medians.items():
        print(f"{name:28} {spent:6.2f} s (median of {RUNS} cold runs)")
    ratio = medians["dtrain plan"] / medians["accelerate estimate-memory"]
    print(f"{'ratio':28} {ratio:6.3f}   (to reach: {TO_REACH:.3f})")


if __name__ == "__main__":
    main()
