from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dtrain.launch.process import (
    RUN_MARK,
    descendants,
    end_run_processes,
    environment,
    is_alive,
    look,
    processes_of_run,
)
from tests.waiting import wait_until


@pytest.mark.parametrize(("how", "code"), [("sys.exit(75)", 75), ("os.kill(os.getpid(), 9)", -9), ("pass", 0)])
def test_a_zombie_still_tells_how_it_ended(how: str, code: int) -> None:
    with subprocess.Popen([sys.executable, "-c", f"import os, sys; {how}"]) as child:
        wait_until(lambda: (found := look(child.pid)) is not None and not found.running)
        found = look(child.pid)
        assert found is not None
        assert found.exit_code == code
        assert not is_alive(child.pid, found.start_ticks)


def test_a_recycled_pid_is_not_taken_for_the_old_process() -> None:
    own = look(os.getpid())
    assert own is not None
    assert is_alive(own.pid, own.start_ticks)
    assert not is_alive(own.pid, own.start_ticks - 1)
    assert look(2**22 + 1) is None


def test_a_name_with_spaces_and_brackets_is_read(tmp_path: Path) -> None:
    program = str(tmp_path / "a ) R 1 (b")
    os.symlink("/bin/sleep", program)
    with subprocess.Popen([program, "30"]) as child:
        wait_until(lambda: Path(f"/proc/{child.pid}/comm").read_text().startswith("a ) R"))
        found = look(child.pid)
        assert found is not None
        assert found.parent == os.getpid()
        child.kill()


def test_everything_of_a_run_is_ended_also_what_hid_in_another_session() -> None:
    run_id = "20260101-000000-test"
    script = "setsid sh -c 'setsid sleep 60 & exec sleep 61' & sleep 62"
    with subprocess.Popen(["sh", "-c", script], env={**os.environ, RUN_MARK: run_id}) as child:
        wait_until(lambda: len(processes_of_run(run_id)) >= 3)
        others = processes_of_run("20260101-000000-tes")
        assert end_run_processes(run_id) == []
        assert child.wait() == -signal.SIGKILL
    assert others == []
    assert processes_of_run(run_id) == []


def test_descendants_are_found_below_children() -> None:
    with subprocess.Popen(["sh", "-c", "sh -c 'sleep 63; :'; :"]) as child:
        wait_until(lambda: len(descendants(child.pid)) == 2)
        assert child.pid in [one.pid for one in descendants(os.getpid())]
        for process in descendants(child.pid):
            os.kill(process.pid, signal.SIGKILL)
        child.kill()


def test_environment_of_a_gone_process_is_empty() -> None:
    assert environment(2**22 + 1) == {}
    assert environment(os.getpid())
