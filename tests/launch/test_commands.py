"""The commands as a person types them: launch, Ctrl-C, runs, status, logs, attach, stop, resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest

from dtrain.cli.main import main
from dtrain.launch.process import environment, processes_of_run
from dtrain.paths import RunPaths
from tests.launch.conftest import Dtrain, is_training, left_over
from tests.waiting import PATIENCE_SECONDS, wait_until

LONG = {"STAND_IN_STEPS": "100000"}


def runs_of(project: Path) -> list[RunPaths]:
    return [RunPaths.of(path.parent) for path in sorted(project.glob("**/dtrain/run.json"))]


def the_run(project: Path) -> RunPaths:
    wait_until(lambda: runs_of(project))
    (paths,) = runs_of(project)
    return paths


def id_of(paths: RunPaths) -> str:
    return str(json.loads(paths.about.read_text())["id"])


def training(dtrain: Dtrain, process: subprocess.Popen[Any]) -> RunPaths:
    """Wait until the launched run trains."""
    paths = the_run(dtrain.folder)
    wait_until(lambda: is_training(paths) or process.poll() is not None)
    return paths


def test_launch_from_the_plan_to_the_report(dtrain: Dtrain, tmp_path: Path) -> None:
    """The run's last step waits until the client has told that it trains: it looks once a moment."""
    held = {"STAND_IN_STEPS": "40", "STAND_IN_LAST_STEP_UNTIL": str(tmp_path / "told")}
    with dtrain.start("launch", "tiny.yaml", "--profile", "cpu", **held) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = next_with(process.stdout, "tiny: training")
        (tmp_path / "told").touch()
        said += process.stdout.read()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    paths = the_run(dtrain.folder)
    for words in ("fits:", "step 40/40", "held-out", "● held-out loss", "dtrain generate tiny"):
        assert words in said
    assert str(paths.metrics.relative_to(dtrain.folder)) in said
    assert "\x1b" not in said
    assert paths.output.parent == dtrain.folder / "runs"


def next_with(stream: IO[str], words: str) -> str:
    """What is said up to the line with these words."""
    said = ""
    for line in stream:
        said += line
        if words in line:
            return said
    raise AssertionError(f"{words!r} was never said:\n{said}")


def test_dry_run_shows_what_would_be_done_and_does_nothing(dtrain: Dtrain, home: Path) -> None:
    before = sorted(dtrain.folder.rglob("*"))
    document = dtrain.json("launch", "tiny.yaml", "--profile", "cpu", "--dry-run", "--json")
    assert document["dry_run"] is True
    assert document["plan"]["fits"] is True
    names = {Path(path).name for path in document["files"]}
    assert names == {"config.yaml", "plan.json", "run.json", "launch.json"}
    assert document["commands"][0][-1] == document["run"]["folder"]
    assert dtrain("launch", "tiny.yaml", "--profile", "cpu", "--dry-run") == 0
    assert "torch.distributed.run" in dtrain.out or "stand_in" in dtrain.out
    assert sorted(dtrain.folder.rglob("*")) == before
    assert not home.exists()


def test_json_is_one_document_and_words_go_to_stderr(dtrain: Dtrain) -> None:
    document = dtrain.json("launch", "tiny.yaml", "--profile", "cpu", "--json", "--name", "given")
    assert (document["schema_version"], document["name"], document["state"], document["exit_code"]) == (
        1, "given", "done", 0,
    )  # fmt: skip
    assert document["exit"]["step"] == 10
    assert "fits:" in dtrain.err


def test_ctrl_c_saves_and_says_how_to_go_on(dtrain: Dtrain) -> None:
    process = dtrain.start("launch", "tiny.yaml", "--profile", "cpu", **LONG)
    paths = training(dtrain, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75
    assert f"dtrain resume {id_of(paths)}" in out
    assert "Traceback" not in out + err
    assert list(paths.checkpoints.glob("step-*/manifest.json"))
    assert left_over(id_of(paths)) == []


def test_a_second_ctrl_c_ends_it_at_once(dtrain: Dtrain) -> None:
    process = dtrain.start("launch", "tiny.yaml", "--profile", "cpu", STAND_IN_DEAF="1", **LONG)
    paths = training(dtrain, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert left_over(id_of(paths)) == []


def test_ctrl_c_as_a_terminal_sends_it(dtrain: Dtrain) -> None:
    """To the whole foreground group, and in a terminal of its own: the run must not hear it twice."""
    import pty

    master, slave = pty.openpty()
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "TERM": "xterm-256color", **LONG}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.launch.cli", "launch", "tiny.yaml", "--profile", "cpu"],
        cwd=dtrain.folder, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(slave)
        with ThreadPoolExecutor(1) as pool:
            said = pool.submit(everything_from, master)
            paths = training(dtrain, process)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == 75
            assert b"\x1b[" in said.result()
            assert b"dtrain resume" in said.result()
    os.close(master)
    assert list(paths.checkpoints.glob("step-*/manifest.json"))


def everything_from(terminal: int) -> bytes:
    said = b""
    while True:
        try:
            said += os.read(terminal, 65536)
        except OSError:  # the other side is closed
            return said


def test_a_killed_rank_is_shown_with_its_log(dtrain: Dtrain) -> None:
    process = dtrain.start("launch", "tiny.yaml", "--profile", "cpu", **LONG)
    paths = training(dtrain, process)
    (victim,) = [one.pid for one in processes_of_run(id_of(paths)) if environment(one.pid).get("RANK") == "1"]
    os.kill(victim, signal.SIGKILL)
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "rank 1 was killed by SIGKILL" in out
    assert "rank 1 listens" in out
    assert left_over(id_of(paths)) == []


def test_a_failing_rank_is_shown_with_its_traceback(dtrain: Dtrain) -> None:
    assert dtrain("launch", "tiny.yaml", "--profile", "cpu", STAND_IN_FAILS="1@3") == 1
    assert "Traceback: here" in dtrain.out
    assert "rank 1: RuntimeError: the stand-in was told to fail" in dtrain.out
    document = dtrain.json("launch", "tiny.yaml", "--profile", "cpu", "--json", STAND_IN_FAILS="1@3")
    assert document["error"]["code"] == 1
    assert document["state"] == "failed"


def test_bad_data_is_bad_input_with_its_row_and_without_a_traceback(dtrain: Dtrain) -> None:
    assert dtrain("launch", "tiny.yaml", "--profile", "cpu", STAND_IN_PREPARE_FAILS="1") == 2
    assert "rows.jsonl:3" in dtrain.out
    assert "row 3 has no field 'output'" in dtrain.out
    assert "Traceback" not in dtrain.out
    document = dtrain.json("launch", "tiny.yaml", "--profile", "cpu", "--json", STAND_IN_PREPARE_FAILS="1")
    assert (document["error"]["code"], document["error"]["line"], document["error"]["fix"]) == (2, 3, "add it")


def test_the_client_may_die_and_the_run_goes_on(dtrain: Dtrain) -> None:
    process = dtrain.start("launch", "tiny.yaml", "--profile", "cpu", STAND_IN_STEPS="100")
    paths = training(dtrain, process)
    process.kill()
    process.communicate()
    assert dtrain("attach", "tiny") == 0
    assert "step 100/100" in dtrain.out
    assert paths.exit.exists()


def test_detach_follow_stop_resume(dtrain: Dtrain) -> None:
    started = dtrain.json("launch", "tiny.yaml", "--profile", "cpu", "--detach", "--json", **LONG)
    paths = the_run(dtrain.folder)
    wait_until(lambda: is_training(paths))
    assert started["id"] == id_of(paths)
    assert dtrain.json("status", "tiny", "--json")["state"] == "running"
    assert [run["state"] for run in dtrain.json("runs", "--json")["runs"]] == ["running"]
    assert dtrain("resume", "tiny") == 2
    assert "running already" in dtrain.err
    assert dtrain.json("stop", started["id"], "--json")["state"] == "interrupted"
    assert dtrain("stop", "tiny") == 0
    assert "interrupted" in dtrain.out
    saved = max(int(path.name[5:]) for path in paths.checkpoints.glob("step-*"))
    assert dtrain("resume", str(paths.output), STAND_IN_STEPS=str(saved + 5)) == 0
    assert f"going on after step {saved}" in dtrain.out
    assert (paths.past / "1" / "exit.json").exists()
    steps = [json.loads(line)["step"] for line in paths.metrics.read_text().splitlines()]
    assert steps == list(range(1, saved + 6))
    assert dtrain("resume", "tiny") == 2
    assert "is finished" in dtrain.err
    document = dtrain.json("status", "tiny", "--json")
    assert (document["state"], document["exit_code"], document["step"]) == ("done", 0, saved + 5)


def test_resume_needs_a_checkpoint_or_force(dtrain: Dtrain) -> None:
    assert dtrain("launch", "tiny.yaml", "--profile", "cpu", STAND_IN_FAILS="0@3") == 1
    assert dtrain("resume", "tiny") == 2
    assert "--force" in dtrain.err
    assert dtrain("resume", "tiny", "--force", "--detach") == 0
    assert dtrain("attach", "tiny") == 0
    assert "was told to fail" not in dtrain.out


def test_a_lost_run_is_swept_and_resumed(dtrain: Dtrain) -> None:
    dtrain("launch", "tiny.yaml", "--profile", "cpu", "--detach", **LONG)
    paths = the_run(dtrain.folder)
    wait_until(lambda: is_training(paths))
    os.kill(json.loads(paths.supervisor.read_text())["pid"], signal.SIGKILL)
    wait_until(lambda: dtrain.json("status", "tiny", "--json")["state"] == "lost")
    assert dtrain("stop", "tiny") == 0
    assert dtrain("resume", "tiny", "--force") == 0
    assert left_over(id_of(paths)) == []


def test_logs_merge_follow_and_pick(dtrain: Dtrain) -> None:
    dtrain("launch", "tiny.yaml", "--profile", "cpu", "--detach", STAND_IN_STEPS="100")
    assert dtrain("logs", "tiny", "-f") == 0
    assert {"[rank 0] rank 0 listens", "[rank 1] rank 1 listens"} <= set(dtrain.out.splitlines())
    assert dtrain("logs", "tiny", "--rank", "1") == 0
    assert dtrain.out.splitlines() == ["[rank 1] rank 1 listens"]
    assert dtrain("logs", "tiny", "--rank", "7") == 2
    assert "0 to 1" in dtrain.err


def test_attach_is_left_with_ctrl_c_and_the_run_goes_on(dtrain: Dtrain) -> None:
    dtrain("launch", "tiny.yaml", "--profile", "cpu", "--detach", **LONG)
    process = dtrain.start("attach", "tiny")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert "The run goes on" in out
    assert dtrain.json("status", "tiny", "--json")["state"] == "running"
    dtrain("stop", "tiny")


def test_stop_by_a_name_that_two_live_runs_have(dtrain: Dtrain) -> None:
    for _ in range(2):
        dtrain("launch", "tiny.yaml", "--profile", "cpu", "--detach", **LONG)
    assert dtrain("stop", "tiny") == 2
    assert "say its id" in dtrain.err
    for paths in runs_of(dtrain.folder):
        assert dtrain("stop", id_of(paths)) == 0


BAD: list[tuple[list[str], int, str]] = [
    (["launch", "tyni.yaml", "--profile", "cpu"], 2, "tiny.yaml"),
    (["launch", "tiny.yaml", "--profile", "cpu", "--on", "lokal"], 2, "--on local"),
    (["launch", "tiny.yaml", "--profile", "nothingx8"], 2, "nothing"),
    (["launch", "tiny.yaml", "--profile", "a100x8"], 2, "this machine shows 0"),
    (["launch", "tiny.yaml", "--profile", "cpux2x2"], 5, "2 nodes"),
    (["launch", "tiny.yaml", "--profile", "cpu", "--set", "launchers.local.grace_secs=5"], 2, "grace_seconds"),
    (["launch", "tiny.yaml", "--profile", "cpu", "--set", "learning_rat=5"], 2, "learning_rate"),
    (["launch", "tiny.yaml", "--profile", "cpu", "--set", "fp8=true"], 2, "fp8"),
    (["launch", "tiny.yaml", "--profile", "cpu", "--set", "reinit_weights=false"], 2, "no weights in this folder"),
    (["launch", "tiny.yaml", "--profile", "cpu", "--name", "two\nlines"], 2, "--name"),
    (["launch", "tiny.yaml", "--profile", "cpu", "--set", "output_dir=rows.jsonl"], 2, "is a file"),
    (["launch", "tiny.yaml", "--profile", "cpu", "--set", "output_dir=model"], 2, "not a run's"),
    (["launch", "tiny.yaml", "--profile", "cpu", "--set", "output_dir=/proc/no"], 2, "/proc/no"),
    (["status", "nobody"], 2, "no such run"),
    (["resume", "nobody"], 2, "no such run"),
]


class InProcess:
    """The same command line without a new interpreter: for what starts nothing."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str) -> int:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        self.out, self.err = self.capsys.readouterr()
        return int(left.value.code or 0)

    def json(self, *arguments: str) -> Any:
        self(*arguments)
        return json.loads(self.out)


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    monkeypatch.chdir(project)
    monkeypatch.setenv("COLUMNS", "200")
    return InProcess(capsys)


@pytest.mark.parametrize(("arguments", "code", "says"), BAD, ids=[" ".join(words[-2:]) for words, _, _ in BAD])
def test_bad_input_leaves_nothing(
    here: InProcess, project: Path, home: Path, arguments: list[str], code: int, says: str
) -> None:
    before = sorted(project.rglob("*"))
    assert here(*arguments) == code
    assert says in here.err
    assert sorted(project.rglob("*")) == before
    assert not list(home.glob("runs/*"))
    if arguments[0] != "resume":
        document = here.json(*arguments, "--json")
        errors = document.get("errors", [document["error"]])
        assert errors[0]["code"] == code
        assert {"code", "message", "file", "line", "key", "value", "allowed", "fix"} <= set(errors[0])


def test_what_does_not_fit_is_told_with_ways_out(here: InProcess, project: Path) -> None:
    arguments = ["launch", "tiny.yaml", "--profile", "t4x1", "--set", "micro_batch_size=10000000"]
    assert here(*arguments) == 3
    assert not runs_of(project)
    document = here.json(*arguments, "--json")
    assert document["error"]["code"] == 3
    assert document["plan"]["fits"] is False
    assert "ways_out" in document


def test_a_node_with_too_little_memory_is_told_as_such(here: InProcess, project: Path) -> None:
    sets = ["base_model=TinyLlama/TinyLlama-1.1B-Chat-v1.0", "reinit_weights=false", "train_tokenizer=null"]
    asked = [word for said in [*sets, "offload_optimizer=cpu"] for word in ("--set", said)]
    assert here("launch", "tiny.yaml", "--profile", "t4x1", *asked) == 3
    assert "of a node's memory" in here.out
    assert "of host memory per node are needed" in here.err


def test_a_finished_runs_folder_is_refused_with_the_two_ways_on(dtrain: Dtrain) -> None:
    arguments = ["launch", "tiny.yaml", "--profile", "cpu", "--set", "output_dir=out"]
    assert dtrain(*arguments) == 0
    before = (dtrain.folder / "out" / "dtrain" / "exit.json").read_bytes()
    assert dtrain(*arguments) == 2
    assert "is finished" in dtrain.err
    assert "dtrain resume" in dtrain.err
    assert "output_dir=" in dtrain.err
    assert (dtrain.folder / "out" / "dtrain" / "exit.json").read_bytes() == before


def test_two_launches_into_one_folder_make_one_run(dtrain: Dtrain) -> None:
    arguments = ["launch", "tiny.yaml", "--profile", "cpu", "--set", "output_dir=out"]
    racers = [dtrain.start(*arguments, STAND_IN_STEPS="30") for _ in range(3)]
    for racer in racers:
        racer.communicate(timeout=PATIENCE_SECONDS)
    assert sorted(racer.returncode for racer in racers) == [0, 2, 2]
    assert len(dtrain.json("runs", "--json")["runs"]) == 1


def test_a_closed_pipe_is_no_error(dtrain: Dtrain) -> None:
    dtrain("launch", "tiny.yaml", "--profile", "cpu")
    with dtrain.start("logs", "tiny") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
