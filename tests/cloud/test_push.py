"""`output: hub:…`: the hub's own client against a server of ours that takes what it sends."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

TOKEN = "hf_0123456789secret"
OID = "1" * 40


class Hub(ThreadingHTTPServer):
    """What `create_repo` and a commit of small files ask of huggingface.co."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.private: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.names: list[str] = []
        """Of files, as they came."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answering(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            return self.created(json.loads(body))
        if self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            return self.answer(
                200, {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]}
            )
        if self.path.endswith("/commit/main"):
            return self.committed([json.loads(line) for line in body.splitlines()])
        return self.answer(404, {"error": self.path})

    def created(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.server.private:
            return self.answer(
                409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}
            )
        self.server.private[name] = asked["visibility"] == "private"
        return self.answer(200, {"url": f"{self.server.url}/{name}"})

    def committed(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.server.names.append(line["value"]["path"])
        self.answer(200, {"commitUrl": f"{self.server.url}/mira/tales/commit/{OID}", "commitOid": OID})

    def answer(self, code: int, told: dict[str, Any]) -> None:
        content = json.dumps(told).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def a_hub() -> Iterator[Hub]:
    hub = Hub()
    Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def sent(hub: Hub, source: Path, name: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads HF_ENDPOINT when it is imported."""
    words = "import sys, pathlib; from dtrain.cloud.push import send; "
    words += "send('hub:mira/tales', pathlib.Path(sys.argv[1]), sys.argv[2])"
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", words, str(source), name]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def test_a_checkpoint_and_a_model_go_to_a_private_repository_of_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "step-4"
    folder.mkdir()
    for name in ("manifest.json", "rank-0.safetensors", "zeros.bin"):
        (folder / name).write_bytes(name.encode() * 100)
    with a_hub() as hub:
        for source, name in ((folder, "dtrain/checkpoints/step-4"), (folder / "zeros.bin", "model.safetensors")):
            done = sent(hub, source, name)
            assert done.returncode == 0, done.stderr
        assert hub.private == {"mira/tales": True}
        assert hub.files["dtrain/checkpoints/step-4/rank-0.safetensors"] == b"rank-0.safetensors" * 100
        assert hub.files["model.safetensors"] == b"zeros.bin" * 100
        assert hub.names[2] == "dtrain/checkpoints/step-4/manifest.json"  # last: what has one is whole


def test_a_wrong_token_is_an_error_that_does_not_show_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with a_hub() as hub:
        done = sent(hub, tmp_path / "a.json", "a.json", token="hf_wrong0123")
    assert done.returncode != 0
    assert "401" in done.stderr
    assert "hf_wrong0123" not in done.stderr + done.stdout
