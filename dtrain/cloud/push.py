"""`output: s3://… | gs://… | hub:NAME`: what a run makes goes there from the machine itself, whoever else is there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dtrain.files import write_json
from dtrain.launch.ending import Ending, last_checkpoint
from dtrain.paths import RunPaths

PUSHED = "pushed.json"


class Sent:
    """What went to the output already."""

    def __init__(self, output: str | None) -> None:
        self.output = output
        self._step: int | None = None
        self._model = False

    def bring_up_to_date(self, paths: RunPaths, over: bool) -> None:
        """The newest whole checkpoint, and the model once it is there. A failure is said, and tried again later while
        the run goes on; at the end `pushed.json` tells how it went."""
        if self.output is None:
            return
        problem = None
        try:
            self._bring(paths, over)
        except Exception as error:  # a bucket that cannot be written must not stop the run
            problem = f"{type(error).__name__}: {error}"
            print(f"nothing goes to {self.output}: {problem}", flush=True)
        if over:
            write_json(paths.run / PUSHED, {"output": self.output, "problem": problem})

    def _bring(self, paths: RunPaths, over: bool) -> None:
        assert self.output is not None
        step = last_checkpoint(paths)
        if step is not None and step != self._step:
            folder = paths.checkpoint(step)
            send(self.output, folder, f"dtrain/checkpoints/{folder.name}")
            self._step = step
        ending = Ending.read(paths)
        if over and ending is not None and not self._model:
            for name, file in _results(paths):
                send(self.output, file, name)
            self._model = True


def _results(paths: RunPaths) -> Iterator[tuple[str, Path]]:
    """The model folder's own files, and the run's figures."""
    for file in sorted(paths.output.iterdir()):
        if file.is_file():
            yield file.name, file
    for file in (paths.metrics, paths.report, paths.config, paths.plan, paths.exit):
        if file.exists():
            yield f"dtrain/{file.name}", file


def send(output: str, source: Path, name: str) -> None:
    """A file, or a folder with its files; a manifest goes last, so that what has one is whole."""
    kind, _, place = output.partition(":")
    files = (
        [source] if source.is_file() else sorted(source.rglob("*"), key=lambda one: (one.name == "manifest.json", one))
    )
    for file in files:
        if file.is_file():
            there = name if source.is_file() else f"{name}/{file.relative_to(source)}"
            _SEND[kind](place.removeprefix("//").rstrip("/"), file, there)
    print(f"{name} went to {output}", flush=True)


def _to_s3(place: str, file: Path, name: str) -> None:
    import boto3

    bucket, _, prefix = place.partition("/")
    boto3.client("s3").upload_file(str(file), bucket, f"{prefix}/{name}".lstrip("/"))


def _to_gs(place: str, file: Path, name: str) -> None:
    """By Google's own command, which its images have."""
    command = shutil.which("gcloud")
    if command is None:
        raise FileNotFoundError("gcloud is not installed on the machine")
    subprocess.run([command, "storage", "cp", str(file), f"gs://{place}/{name}"], check=True, capture_output=True)


def _to_hub(place: str, file: Path, name: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi(token=os.environ.get("HF_TOKEN"))
    api.create_repo(place, private=True, exist_ok=True)
    api.upload_file(path_or_fileobj=str(file), path_in_repo=name, repo_id=place)


_SEND = {"s3": _to_s3, "gs": _to_gs, "hub": _to_hub}
