"""What every launcher must keep. A plugin's own tests subclass `LauncherContract` and give it a launcher and jobs.

    class TestMine(LauncherContract):
        @pytest.fixture
        def launcher(self): return MyLauncher()

`new_job(steps)` makes a complete run whose worker does that many short steps and keeps the worker's protocol.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest

from dtrain.errors import DtrainError, LauncherRefused
from dtrain.launch.api import CanKill, Handle, Job, Launcher, Rendered, RunState, Status
from dtrain.paths import RunPaths
from tests.launch.conftest import is_training, left_over
from tests.waiting import wait_until

NewJob = Callable[..., Job]
LONG = 100_000
"""Steps of a run that only ends when it is told to."""
OVER = ("done", "failed", "interrupted", "lost")


class LauncherBasics:
    """Each test is one promise. These differ most between one place and another."""

    @pytest.fixture
    def launcher(self) -> Launcher:
        raise NotImplementedError("give the launcher under test")

    @pytest.fixture
    def new_job(self, make_job: NewJob, monkeypatch: pytest.MonkeyPatch, stand_ins: None) -> NewJob:
        def new(steps: int = 10, **more: Any) -> Job:
            monkeypatch.setenv("STAND_IN_STEPS", str(steps))
            return make_job(**more)

        return new

    def submit(self, launcher: Launcher, job: Job) -> Handle:
        return launcher.submit(job, launcher.render(job))

    def wait_over(self, launcher: Launcher, handle: Handle) -> Status:
        wait_until(lambda: launcher.status(handle).state in OVER)
        return launcher.status(handle)

    def wait_training(self, launcher: Launcher, handle: Handle) -> None:
        """A folder that follows a run elsewhere fills when its launcher is asked."""
        wait_until(lambda: launcher.status(handle) and is_training(RunPaths(Path(handle.folder))))

    def test_it_has_the_six_methods_and_a_name(self, launcher: Launcher) -> None:
        assert isinstance(launcher, Launcher)
        assert launcher.name == launcher.name.strip().lower() != ""

    def test_check_tells_in_lines_and_starts_nothing(self, launcher: Launcher, new_job: NewJob) -> None:
        job = new_job()
        assert launcher.check() == []
        assert launcher.check(job) == []
        assert list(RunPaths(job.folder).run.iterdir()) == []

    def test_render_is_pure_and_whole(self, launcher: Launcher, new_job: NewJob) -> None:
        job = new_job()
        rendered = launcher.render(job)
        assert isinstance(rendered, Rendered)
        assert rendered == launcher.render(job)
        assert rendered.commands
        assert all(isinstance(word, str) for command in rendered.commands for word in command)
        assert rendered.usd_per_hour >= 0
        assert list(RunPaths(job.folder).run.iterdir()) == []

    def test_an_option_it_does_not_know_is_an_error(self, launcher: Launcher, new_job: NewJob) -> None:
        with pytest.raises(DtrainError) as caught:
            launcher.render(new_job(options={"no_such_option": 1}))
        assert "no_such_option" in str(caught.value)
        assert caught.value.exit_code == 2

    def test_submitting_twice_is_one_run(self, launcher: Launcher, new_job: NewJob) -> None:
        job = new_job(50)
        with ThreadPoolExecutor(2) as pool:
            handles = list(pool.map(lambda _: self.submit(launcher, job), range(2)))
        assert handles[0] == handles[1]
        self.wait_over(launcher, handles[0])
        steps = [json.loads(line)["step"] for line in RunPaths(job.folder).metrics.read_text().splitlines()]
        assert steps == list(range(1, 51))

    def test_submitting_an_ended_run_starts_nothing(self, launcher: Launcher, new_job: NewJob) -> None:
        job = new_job(5)
        handle = self.submit(launcher, job)
        before = self.wait_over(launcher, handle), RunPaths(job.folder).exit.read_bytes()
        assert self.submit(launcher, job) == handle
        assert (launcher.status(handle), RunPaths(job.folder).exit.read_bytes()) == before

    def test_cancel_lets_it_save_and_returns_when_nothing_runs(self, launcher: Launcher, new_job: NewJob) -> None:
        job = new_job(LONG)
        handle = self.submit(launcher, job)
        self.wait_training(launcher, handle)
        launcher.cancel(handle)
        status = launcher.status(handle)
        assert (status.state, status.exit_code) == ("interrupted", 75)
        assert list(RunPaths(job.folder).checkpoints.glob("step-*/manifest.json"))
        assert left_over(job.run_id) == []

    def test_logs_name_the_ranks_and_following_ends_with_the_run(self, launcher: Launcher, new_job: NewJob) -> None:
        handle = self.submit(launcher, new_job(20))
        followed = list(launcher.logs(handle, follow=True))
        assert launcher.status(handle).state == "done"
        assert sorted(line for line in followed if "listens" in line) == [
            "[rank 0] rank 0 listens",
            "[rank 1] rank 1 listens",
        ]
        assert sorted(followed) == sorted(launcher.logs(handle, follow=False))

    @pytest.mark.parametrize("name", ["with space", "qu'ote\" ;&& $(touch pwned)", "new\nline", "ünïcødé 漢字"])
    def test_hostile_folder_names(self, launcher: Launcher, new_job: NewJob, tmp_path: Path, name: str) -> None:
        handle = self.submit(launcher, new_job(5, folder=tmp_path / name))
        assert self.wait_over(launcher, handle).state == "done"
        assert not list(Path.cwd().glob("pwned*"))

    def test_a_submit_that_cannot_write_is_refused(self, launcher: Launcher, new_job: NewJob) -> None:
        job = new_job(5)
        RunPaths(job.folder).run.rmdir()
        job.folder.rmdir()
        job.folder.write_text("a file is in the way")
        with pytest.raises(LauncherRefused):
            self.submit(launcher, job)


class LauncherContract(LauncherBasics):
    """All promises."""

    def test_a_handle_is_plain_json_and_names_the_run(self, launcher: Launcher, new_job: NewJob) -> None:
        job = new_job()
        handle = self.submit(launcher, job)
        assert Handle(**json.loads(json.dumps(handle.as_json()))) == handle
        assert (handle.launcher, handle.run_id, handle.folder) == (launcher.name, job.run_id, str(job.folder))
        self.wait_over(launcher, handle)

    def test_a_run_to_its_end(self, launcher: Launcher, new_job: NewJob) -> None:
        handle = self.submit(launcher, new_job(5))
        status = self.wait_over(launcher, handle)
        assert (status.state, status.exit_code) == ("done", 0)
        assert status.state in get_args(RunState)

    def test_another_client_knows_the_run_by_its_handle(self, launcher: Launcher, new_job: NewJob) -> None:
        handle = self.submit(launcher, new_job(LONG))
        other = type(launcher)()
        assert other.status(handle).state in ("pending", "running")
        other.cancel(handle)
        assert launcher.status(handle).state == "interrupted"

    def test_cancel_may_be_repeated(self, launcher: Launcher, new_job: NewJob) -> None:
        handle = self.submit(launcher, new_job(LONG))
        for _ in range(3):
            launcher.cancel(handle)
            assert launcher.status(handle).state == "interrupted"

    def test_cancelling_a_finished_run_changes_nothing(self, launcher: Launcher, new_job: NewJob) -> None:
        handle = self.submit(launcher, new_job(5))
        self.wait_over(launcher, handle)
        launcher.cancel(handle)
        assert launcher.status(handle).state == "done"

    def test_a_failure_is_told_with_its_reason(
        self, launcher: Launcher, new_job: NewJob, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STAND_IN_FAILS", "1@3")
        handle = self.submit(launcher, new_job(LONG))
        status = self.wait_over(launcher, handle)
        assert (status.state, status.exit_code) == ("failed", 1)
        assert "told to fail" in status.reason

    def test_killing_does_not_wait(self, launcher: Launcher, new_job: NewJob, monkeypatch: pytest.MonkeyPatch) -> None:
        if not isinstance(launcher, CanKill):
            pytest.skip("this launcher cannot kill, and need not")
        monkeypatch.setenv("STAND_IN_DEAF", "1")
        job = new_job(LONG)
        handle = self.submit(launcher, job)
        self.wait_training(launcher, handle)
        launcher.kill(handle)
        assert launcher.status(handle).state in ("interrupted", "failed")
        assert left_over(job.run_id) == []
