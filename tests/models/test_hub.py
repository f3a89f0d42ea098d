"""Where a base model's facts come from: folders, the catalogue, the cache, and a small hub on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dtrain.errors import BadInput
from dtrain.models.hub import load_facts

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
PARAMETERS = 2 * 100 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16
NOWHERE = "http://127.0.0.1:9"
"""The discard port: nobody listens."""


class Hub(ThreadingHTTPServer):
    """Answers by path; remembers the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        status, headers, body = self.server.answers.get(self.path, (404, {"X-Error-Code": "RepoNotFound"}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def _own_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache and working directory, no token, no hub."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_TOKEN_PATH", "HUGGINGFACE_HUB_CACHE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def write_config(folder: Path, config: Any = LLAMA) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def error_of(name: str, **options: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        load_facts(name, **options)
    return caught.value


def test_a_folder_from_the_working_directory(tmp_path: Path) -> None:
    write_config(tmp_path / "work" / "model")
    facts = load_facts("model")
    assert (facts.parameters, facts.source) == (PARAMETERS, "model/config.json")
    assert load_facts(str(tmp_path / "work" / "model")).parameters == PARAMETERS


def test_a_folder_beside_the_yaml(tmp_path: Path) -> None:
    write_config(tmp_path / "configs" / "model")
    assert load_facts("./model", config_dir=tmp_path / "configs").parameters == PARAMETERS


def test_a_folder_that_is_not_there() -> None:
    assert "no such folder" in error_of("./nowhere").message
    assert "no such folder" in error_of("a/b/c").message
    assert "no such folder" in error_of("two words").message
    assert "no such folder" in error_of("../../" + "x" * 5000).message
    assert "no such folder" in error_of("nul\0byte").message


def test_a_folder_without_config(tmp_path: Path) -> None:
    (tmp_path / "work" / "empty").mkdir()
    assert "no config.json" in error_of("./empty").message


@pytest.mark.parametrize(
    ("content", "line"),
    [(b'{"a": 1,\n"b"', 2), (b"\xff\xfe\x00", None), (b"", 1), (b"[1]", None), (b"[" * 100_000, None)],
)
def test_a_broken_config_names_the_file(tmp_path: Path, content: bytes, line: int | None) -> None:
    folder = tmp_path / "work" / "broken"
    folder.mkdir()
    (folder / "config.json").write_bytes(content)
    error = error_of("broken")
    assert (error.file, error.line) == ("broken/config.json", line)


def test_catalogue_names_need_no_network() -> None:
    facts = load_facts("tinyllama/tinyllama_v1.1")
    assert (facts.parameters, facts.source) == (1_100_048_384, "dtrain's catalogue")
    assert load_facts("TinyLlama/TinyLlama_v1.1", revision="main").parameters == facts.parameters


def test_another_revision_is_not_the_catalogue(hub: Hub) -> None:
    hub.answers["/gpt2/resolve/v2/config.json"] = (200, {}, json.dumps(LLAMA).encode())
    assert load_facts("gpt2", revision="v2").parameters == PARAMETERS


def test_the_local_cache(tmp_path: Path) -> None:
    repository = tmp_path / "hf" / "hub" / "models--org--tiny"
    write_config(repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    assert load_facts("org/tiny").parameters == PARAMETERS
    assert load_facts("org/tiny", revision="abc123").parameters == PARAMETERS


def test_the_hub_with_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.answers["/org/tiny/resolve/main/config.json"] = (200, {}, json.dumps(LLAMA).encode())
    assert load_facts("org/tiny").source == f"{hub.url}/org/tiny/resolve/main/config.json"
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_file\n")
    load_facts("org/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_env")
    load_facts("org/tiny")
    assert [token for _, token in hub.asked] == [None, "Bearer hf_file", "Bearer hf_env"]


def test_a_token_does_not_follow_a_redirect(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    elsewhere = hub.url.replace("127.0.0.1", "localhost") + "/elsewhere"
    hub.answers["/org/tiny/resolve/main/config.json"] = (302, {"Location": elsewhere}, b"")
    hub.answers["/elsewhere"] = (200, {}, json.dumps(LLAMA).encode())
    assert load_facts("org/tiny").parameters == PARAMETERS
    assert hub.asked[-1] == ("/elsewhere", None)


@pytest.mark.parametrize(
    ("status", "code", "message", "fix"),
    [
        (403, "GatedRepo", "gated", "HF_TOKEN"),
        (401, "GatedRepo", "gated", "HF_TOKEN"),
        (401, "RepoNotFound", "does not exist, or it is private", "did you mean TinyLlama/TinyLlama_v1.1"),
        (404, "RepoNotFound", "does not know this model", "did you mean TinyLlama/TinyLlama_v1.1"),
        (404, "RevisionNotFound", "not this revision", "commits"),
        (404, "EntryNotFound", "no config.json", "look at"),
        (503, "", "answered 503", "later"),
    ],
)
def test_what_the_hub_refuses(hub: Hub, status: int, code: str, message: str, fix: str) -> None:
    name = "TinyLlama/TinyLlama_v1.0"
    hub.answers[f"/{name}/resolve/main/config.json"] = (status, {"X-Error-Code": code}, b"")
    error = error_of(name)
    assert message in error.message
    assert fix in (error.fix or "")
    assert (error.key, error.value) == ("base_model", name)


def test_a_hub_that_answers_with_a_web_page(hub: Hub) -> None:
    hub.answers["/org/tiny/resolve/main/config.json"] = (200, {}, b"<html>log in</html>")
    assert "no JSON" in error_of("org/tiny").message


def test_no_network() -> None:
    error = error_of("org/tiny")
    assert "hub cannot be asked" in error.message
    assert "config.json" in (error.fix or "")


def test_offline_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.answers["/org/tiny/resolve/main/config.json"] = (200, {}, json.dumps(LLAMA).encode())
    error_of("org/tiny", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in error_of("org/tiny").message
    assert hub.asked == []
    assert load_facts("org/tiny", offline=False).parameters == PARAMETERS


def test_a_strange_endpoint_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    assert "hub cannot be asked" in error_of("org/tiny").message
