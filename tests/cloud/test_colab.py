"""`--on colab`: a real kernel in a clean environment runs the notebook, loses its machine halfway, runs it again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from dtrain_launchers import colab_session

from dtrain.errors import BadInput
from dtrain.launch.process import end_run_processes
from dtrain.paths import RunPaths
from tests.e2e.cli import Place, Result, metrics
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs" / "storyteller-tiny.yaml")
SECRET = "hf_a-secret-that-must-stay-out"
STEPS = 400
"""So many that a machine can be lost on the way, however fast it is."""
QUICK = (
    f"max_steps={STEPS}",
    "num_epochs=40",
    "save_steps=20",
    "eval_steps=400",
    "val_set_size=0.02",
    "sample_max_new_tokens=4",
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "laptop")


def launched(place: Place, *more: str, profile: str = "cpux1") -> Result:
    place.folder.mkdir(exist_ok=True)
    sets = [word for one in QUICK for word in ("--set", one)]
    on_colab = ("--profile", profile, "--on", "colab", "--name", "story", "--json")
    return place.dtrain("launch", TINY, *on_colab, *sets, *more, env={"HF_TOKEN": SECRET})


def cells(notebook: Path) -> dict[str, str]:
    document = nbformat.read(notebook, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(document)
    return {cell["id"]: cell["source"] for cell in document.cells}


def settings(notebook: Path) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(cells(notebook)["settings"], names)
    told: dict[str, Any] = names["RUN"]
    return told


# --- a machine of Colab's -----------------------------------------------------------------------------------------


class Session:
    """A runtime with nothing of dtrain on it, whose disk is lost with it; `drive` outlives it.

    Libraries come from this checkout's environment, dtrain excepted, and no package index is asked: what the notebook
    installs is the wheel it carries.
    """

    def __init__(self, machine: Path, drive: Path, libraries: Path) -> None:
        self.machine = machine
        self.drive = drive
        self.libraries = libraries
        venv.create(machine / "python", with_pip=False)
        (machine / "kept").mkdir()
        (machine / "kept" / "dtrain").symlink_to(drive)

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DTRAIN_", "PYTEST_"))}
        return kept | {
            "PYTHONPATH": str(self.libraries), "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "JUPYTER_PREFER_ENV_PATH": "1", "HF_HUB_OFFLINE": "1", "HF_TOKEN": SECRET, "OMP_NUM_THREADS": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }  # fmt: skip

    def run(self, notebook: Path) -> subprocess.Popen[str]:
        """Run all cells, as `jupyter execute` does, with this machine's own Python as the kernel."""
        kernel = self.machine / "share" / "jupyter" / "kernels" / "python3"
        kernel.mkdir(parents=True, exist_ok=True)
        argv = [str(self.machine / "python" / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "x", "language": "python"}))
        env = self.environment() | {"JUPYTER_PATH": str(self.machine / "share" / "jupyter")}
        return subprocess.Popen(
            [sys.executable, "-c", EXECUTE, str(notebook), str(self.machine)], env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def end(self, run: subprocess.Popen[str], run_id: str) -> None:
        """The machine is gone: every process, and its disk."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        for process in subprocess.run(
            ["pgrep", "-f", str(self.machine)], capture_output=True, text=True
        ).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        end_run_processes(run_id)
        run.communicate(timeout=30)
        shutil.rmtree(self.machine)


EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
told = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}})
try:
    told.execute()
finally:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            print(output.get("text") or output.get("evalue") or "", end="")
"""


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """Everything that is installed here but dtrain itself."""
    folder = tmp_path / "libraries"
    folder.mkdir()
    for path in Path(nbformat.__file__).parents[1].iterdir():
        if not path.name.startswith(("dtrain", "__editable__", "__pycache__")):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture
def sessions(tmp_path: Path, libraries: Path) -> Iterator[Any]:
    """Makes machines, one after the other; none is left running."""
    drive = tmp_path / "drive"
    drive.mkdir()
    begun: list[tuple[Session, subprocess.Popen[str], str]] = []

    def begin(notebook: Path, run_id: str) -> tuple[Session, subprocess.Popen[str]]:
        session = Session(tmp_path / f"machine-{len(begun)}", drive, libraries)
        run = session.run(notebook)
        begun.append((session, run, run_id))
        return session, run

    yield begin
    for session, run, run_id in begun:
        if session.machine.exists():
            session.end(run, run_id)


@pytest.mark.slow
@pytest.mark.xdist_group("gloo")
def test_a_notebook_trains_goes_on_after_its_machine_was_lost_and_keeps_the_result(
    place: Place, sessions: Any, tmp_path: Path
) -> None:
    told = launched(place)
    assert told.code == 0, told.err
    run_id, folder = told.document["id"], Path(told.document["folder"])
    notebook = folder / "colab.ipynb"
    kept = RunPaths(tmp_path / "drive" / run_id)
    assert SECRET not in notebook.read_text()

    first, run = sessions(notebook, run_id)
    wait_until(lambda: run.poll() is not None or any(kept.checkpoints.glob("step-*/manifest.json")), 240)
    assert run.poll() is None, run.communicate()[0]
    first.end(run, run_id)
    assert not kept.exit.exists()

    _, run = sessions(notebook, run_id)
    said = run.communicate(timeout=300)[0]
    assert run.returncode == 0, said
    assert "going on after step" in said
    assert json.loads(kept.exit.read_text())["code"] == 0
    assert metrics(kept)[-1]["step"] == STEPS
    assert "Gullhaven" in said.split("a Hugging Face model folder:")[1]
    assert (kept.output / "model.safetensors").exists()
    assert json.loads(kept.plan.read_text()) == json.loads(RunPaths(folder).plan.read_text()), "the same plan"
    assert not _holding(SECRET, kept.output)

    _it_comes_home(place, folder, run_id, tmp_path / "drive")


def _it_comes_home(place: Place, folder: Path, run_id: str, drive: Path) -> None:
    """With Drive for desktop the client sees what Colab kept: status, logs, fetch."""
    entry = place.folder / "home" / "runs" / f"{run_id}.json"
    document = json.loads(entry.read_text())
    document["handle"]["data"]["drive"] = str(drive)
    entry.write_text(json.dumps(document))
    assert "[rank 0]" in place.dtrain("logs", run_id).out
    assert place.dtrain("status", run_id, "--json").document["state"] == "done"
    assert place.dtrain("fetch", run_id).code == 0
    assert (folder / "model.safetensors").exists()
    assert RunPaths(folder).exit.exists()


def _holding(words: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and words.encode() in path.read_bytes()]


# --- what is written, and what is refused -------------------------------------------------------------------------


def test_the_notebook_is_valid_says_the_plan_and_is_the_same_in_a_dry_run(place: Place) -> None:
    told = launched(place)
    notebook = Path(told.document["folder"]) / "colab.ipynb"
    written = cells(notebook)
    assert list(written) == ["about", "settings", "keep", "preflight", "parcel", "install", "train", "result"]
    assert f"| steps | {STEPS} |" in written["about"]
    assert "MyDrive/dtrain/" in written["about"]
    assert len(told.document["next_steps"]) == 3
    for name in list(written)[1:]:
        compile(written[name], name, "exec")
    dry = launched(place, "--dry-run").document
    [shown] = [text for path, text in dry["files"].items() if path.endswith("colab.ipynb")]
    run_id = dry["run"]["id"]
    [parcel] = [line for line in written["parcel"].splitlines() if line == "@PARCEL@"] or ["@PARCEL@"]
    assert {cell["id"]: cell["source"] for cell in json.loads(shown)["cells"]}["parcel"].count(parcel) == 1
    same = {name: text.replace(told.document["id"], run_id) for name, text in written.items() if name != "parcel"}
    assert {cell["id"]: cell["source"] for cell in json.loads(shown)["cells"] if cell["id"] != "parcel"} == same
    assert not (Path(dry["run"]["folder"])).exists()


def test_a_card_that_is_not_there_is_told_before_anything_is_installed(place: Place, tmp_path: Path) -> None:
    told = launched(place, profile="t4x1")
    notebook = Path(told.document["folder"]) / "colab.ipynb"
    assert settings(notebook)["runtime"] == "T4 GPU"
    code = "\n".join(cells(notebook)[name] for name in ("settings", "keep", "preflight"))
    (tmp_path / "bin").mkdir()
    env = {**os.environ, "PATH": str(tmp_path / "bin")}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "Runtime → Change runtime type → T4 GPU" in done.stderr
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 15360\n")
    smi.chmod(0o755)
    env["PATH"] += ":/usr/bin:/bin"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("profile", "more", "words"),
    [
        ("a100x2", ("--set", "global_batch_size=2"), "Colab gives one GPU"),
        ("h100x1", (), "Colab has no such machine"),
        ("cpux1x2", (), "Colab gives one GPU"),
        ("t4x1", ("--set", "launchers.colab.drive_folder=/etc"), "a folder's name under MyDrive"),
        ("t4x1", ("--set", "launchers.colab.gpu=a100"), "drive_folder"),
    ],
)
def test_what_colab_is_not_is_refused(place: Place, profile: str, more: tuple[str, ...], words: str) -> None:
    told = launched(place, *more, profile=profile)
    assert told.code == 2
    assert words in json.dumps(told.document["error"], ensure_ascii=False)
    assert not list(place.folder.glob("runs/*"))


def test_it_says_that_it_cannot_see_or_stop_it(place: Place) -> None:
    run_id = launched(place).document["id"]
    assert place.dtrain("status", run_id, "--json").document["state"] == "pending"
    assert "Google Drive for desktop" in place.dtrain("logs", run_id).out
    stopped = place.dtrain("stop", run_id)
    assert stopped.code == 5
    assert "Runtime → Interrupt execution" in stopped.err
    assert place.dtrain("fetch", run_id).code == 2


def test_a_large_input_goes_over_drive_and_is_checked_there(tmp_path: Path) -> None:
    parcel, drive = tmp_path / "parcel", tmp_path / "drive"
    (parcel / "run").mkdir(parents=True)
    about = {"folder": "/content/dtrain/runs/x", "from_drive": {"inputs/datasets-0/rows.jsonl": "0" * 64}}
    for name in ("config.yaml", "plan.json", "run.json"):
        (parcel / "run" / name).write_text('{"output_dir": "/content/dtrain/runs/x"}')
    paths = RunPaths(tmp_path / "run")
    with pytest.raises(BadInput, match="not on Drive"):
        colab_session.place(parcel, paths, about, drive)
    (drive / "inputs" / "datasets-0").mkdir(parents=True)
    (drive / "inputs" / "datasets-0" / "rows.jsonl").write_text("{}")
    with pytest.raises(BadInput, match="not the file"):
        colab_session.place(parcel, paths, about, drive)
    assert json.loads(paths.config.read_text())["output_dir"] == str(paths.output)


def test_a_full_drive_is_told_once_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths, kept = RunPaths(tmp_path / "run"), RunPaths(tmp_path / "drive" / "run")
    paths.checkpoint(1).mkdir(parents=True)
    (paths.checkpoint(1) / "manifest.json").write_text("{}")
    (tmp_path / "drive").write_text("no folder: every write below it fails")
    keeper = colab_session.Keeper(paths, kept)
    assert not keeper.keep()
    assert not keeper.keep()
    assert capsys.readouterr().out.count("cannot be kept") == 1
    (tmp_path / "drive").unlink()
    kept.run.mkdir(parents=True)
    kept.exit.write_text("of a life before this one")
    assert keeper.keep(everything=True)
    assert not kept.exit.exists()
    assert (kept.checkpoint(1) / "manifest.json").exists()
