from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dtrain.errors import BadInput, LauncherRefused
from dtrain.launch import begin, registry
from dtrain.launch.api import Handle, Job, Rendered, Status
from dtrain.launch.create import new_id
from dtrain.launch.ending import Ending
from dtrain.launch.registry import Broken, Entry
from dtrain.launch.standing import Supervisor, folder_status
from dtrain.paths import RunPaths


def entry_of(name: str, folder: Path, created: float, run_id: str | None = None) -> Entry:
    return Entry(run_id or new_id(created), name, str(folder), "local", "cpu", created)


def test_what_is_written_is_read_newest_first(tmp_path: Path) -> None:
    first, second = entry_of("one", tmp_path / "1", 1.0), entry_of("two", tmp_path / "2", 2.0)
    registry.write(first)
    registry.write(second)
    assert registry.entries() == ([second, first], [])


def test_a_broken_entry_is_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    registry.write(entry_of("good", tmp_path, 1.0))
    for name, text in (("half", '{"id": "x", "na'), ("wrong", '{"id": 5}'), ("list", "[]"), ("null", '{"id": null}')):
        (registry.folder() / f"{name}.json").write_text(text)
    (registry.folder() / "binary.json").write_bytes(b"\xff\xfe\x00")
    good, broken = registry.entries()
    assert [entry.name for entry in good] == ["good"]
    assert {one.path.stem for one in broken} == {"half", "wrong", "list", "null", "binary"}
    assert all(one.why for one in broken)


def test_a_newer_dtrains_entry_is_read(tmp_path: Path) -> None:
    entry = entry_of("good", tmp_path, 1.0)
    registry.write(entry)
    file = registry.folder() / f"{entry.id}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"of_tomorrow": 1}))
    assert registry.read(file) == entry


def test_two_clients_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    script = (
        "import sys; from dtrain.launch import registry\n"
        "for n in range(20): registry.write(registry.Entry(f'{sys.argv[1]}-{n}', 'x', '/x', 'local', 'cpu', n))"
    )
    clients = [subprocess.Popen([sys.executable, "-c", script, str(who)]) for who in range(4)]
    assert [client.wait() for client in clients] == [0, 0, 0, 0]
    good, broken = registry.entries()
    assert (len(good), broken) == (80, [])
    assert not list(registry.folder().glob(".*"))


class TestFind:
    @pytest.fixture(autouse=True)
    def runs(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "run two"
        (self.folder / "dtrain").mkdir(parents=True)
        self.old = entry_of("story", tmp_path / "1", 1.0, "20260101-000000-aaaa")
        self.new = entry_of("story", self.folder, 2.0, "20260102-000000-bbbb")
        self.other = entry_of("other", tmp_path / "3", 3.0, "20260103-000000-cccc")
        for entry in (self.old, self.new, self.other):
            registry.write(entry)

    def test_by_id_and_by_the_beginning_of_one(self) -> None:
        assert registry.find("20260101-000000-aaaa") == self.old
        assert registry.find("20260103") == self.other

    def test_by_name_the_newest(self) -> None:
        assert registry.find("story") == self.new
        assert registry.namesakes(self.new) == [self.old]

    def test_by_folder_and_by_the_run_in_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (self.folder / "dtrain" / "plan.json").touch()
        assert registry.find(str(self.folder)) == self.new
        assert registry.find(f"{self.folder}/dtrain/") == self.new
        monkeypatch.chdir(self.folder.parent)
        assert registry.find("run two") == self.new
        monkeypatch.chdir(self.folder)
        assert registry.find(".") == self.new

    def test_a_folder_explains_itself_where_the_registry_does_not_know_it(self, tmp_path: Path) -> None:
        run = tmp_path / "moved" / "dtrain"
        run.mkdir(parents=True)
        about = {"id": "the-id", "name": "n", "launcher": "local", "profile": "cpu", "created": 1.0, "folder": "/gone"}
        (run / "run.json").write_text(json.dumps(about))
        found = registry.find(str(tmp_path / "moved"))
        assert (found.id, found.folder) == ("the-id", str(tmp_path / "moved"))

    def test_several_and_none(self) -> None:
        with pytest.raises(BadInput, match="several runs begin like this") as several:
            registry.find("2026010")
        assert "20260101-000000-aaaa (story)" in str(several.value.allowed)
        with pytest.raises(BadInput, match="no such run") as none:
            registry.find("stroy")
        assert none.value.fix == "did you mean story?"
        with pytest.raises(BadInput):
            registry.find("")

    def test_strange_words_are_no_run(self) -> None:
        for said in ("\0", "x" * 5000, "/proc/self/mem", "a\nb"):
            with pytest.raises(BadInput, match="no such run"):
                registry.find(said)


class TestStatus:
    def test_a_recycled_pid_is_not_taken_for_ours(self, tmp_path: Path) -> None:
        paths = RunPaths(tmp_path)
        own = Supervisor.here("id")
        own.write(paths)
        assert folder_status(paths) is not None
        assert str(folder_status(paths)).count("running")
        for other in ({"start_ticks": own.start_ticks + 1}, {"boot_id": "another"}, {"pid": 2**22 + 1}):
            Supervisor(**{**vars(own), **other}).write(paths)
            status = folder_status(paths)
            assert status is not None
            assert status.state == "lost"

    def test_exit_json_comes_first(self, tmp_path: Path) -> None:
        paths = RunPaths(tmp_path)
        Supervisor.here("id").write(paths)
        for code, state in ((0, "done"), (1, "failed"), (2, "failed"), (75, "interrupted")):
            Ending(code, "why", 1, 1.0).write(paths)
            assert folder_status(paths) == Status(state, code, "why")  # type: ignore[arg-type]

    def test_another_machines_supervisor_says_nothing_here(self, tmp_path: Path) -> None:
        paths = RunPaths(tmp_path)
        Supervisor(**{**vars(Supervisor.here("id")), "host": "elsewhere"}).write(paths)
        assert folder_status(paths) is None
        entry = entry_of("n", tmp_path, 1.0)
        assert begin.status(entry, ask=False).state == "pending"
        told = entry.told(Status("running", None, "step 5"))
        assert begin.status(told, ask=False) == Status("running", None, "step 5")

    def test_a_run_whose_folder_is_gone(self, tmp_path: Path) -> None:
        assert begin.status(entry_of("n", tmp_path / "gone", 1.0), ask=False).state == "lost"


class Recorder:
    """A launcher that looks at the registry when it is asked to start something."""

    name = "recorder"

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails = fails
        self.seen: list[Entry | Broken] = []

    def submit(self, job: Job, rendered: Rendered) -> Handle:
        self.seen.append(registry.read(registry.folder() / f"{job.run_id}.json"))
        if self.fails is not None:
            raise self.fails
        return Handle(self.name, job.run_id, str(job.folder), {"number": 7})


class TestSubmit:
    def submit(self, launcher: Recorder, entry: Entry) -> Entry:
        job = Job(entry.id, entry.name, Path(entry.folder), 1, 1, "cpu")
        return begin.submit(launcher, job, Rendered(), entry)  # type: ignore[arg-type]

    def test_the_intent_is_there_before_and_the_handle_after(self, tmp_path: Path) -> None:
        launcher, entry = Recorder(), entry_of("n", tmp_path, 1.0)
        after = self.submit(launcher, entry)
        (before,) = launcher.seen
        assert isinstance(before, Entry)
        assert before.handle is None
        assert registry.entries() == ([after], [])
        assert after.submitted().data == {"number": 7}

    def test_a_refusal_takes_the_intent_back(self, tmp_path: Path) -> None:
        with pytest.raises(LauncherRefused):
            self.submit(Recorder(LauncherRefused("no")), entry_of("n", tmp_path, 1.0))
        assert registry.entries() == ([], [])

    def test_anything_else_keeps_it(self, tmp_path: Path) -> None:
        entry = entry_of("n", tmp_path, 1.0)
        with pytest.raises(TimeoutError):
            self.submit(Recorder(TimeoutError()), entry)
        assert registry.entries() == ([entry], [])
        assert entry.submitted() == Handle("local", entry.id, str(tmp_path))

    def test_a_refused_resume_keeps_what_was_known(self, tmp_path: Path) -> None:
        entry = self.submit(Recorder(), entry_of("n", tmp_path, 1.0))
        with pytest.raises(LauncherRefused):
            self.submit(Recorder(LauncherRefused("no")), entry)
        assert registry.entries() == ([entry], [])


def test_a_hundred_runs_are_listed(tmp_path: Path, home: Path) -> None:
    for number in range(100):
        paths = RunPaths(tmp_path / str(number))
        Ending(0, "done", 5, 1.0).write(paths)
        registry.write(entry_of("many", paths.output, float(number), f"20260101-000000-{number:04}"))
    command = [sys.executable, "-m", "dtrain", "runs", "--json"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    assert len(json.loads(told.stdout)["runs"]) == 100


def test_a_registry_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DTRAIN_HOME", str(tmp_path / "file"))
    with pytest.raises(BadInput, match="registry") as caught:
        registry.write(entry_of("n", tmp_path, 1.0))
    assert "DTRAIN_HOME" in str(caught.value.fix)
