"""Ends a machine through its provider's API when its time is over, from the machine itself: for providers that have no
limit of their own and whose bill a shutdown does not end.

The lower half of this file runs on the machine, by whatever Python is there: `program` sends the whole file over SSH's
stdin, and with it the request that ends the machine and the key for it. Both are only ever in that process's memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import string
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CALL_SECONDS = 30.0


def program(
    ending: Mapping[str, Any], secrets: Mapping[str, str], seconds: float, save: Sequence[str], save_seconds: float,
    sent: str = "", state: str = "/dev/shm/dtrain-watchdog", again_seconds: float = 15.0,
) -> bytes:  # fmt: skip
    """What `python3 -` is given on a machine: in so many seconds it ends the machine.

    `ending` is a request (method, url, headers, body) in which `$NAME` stands for a secret; it is sent every
    `again_seconds` until the provider knows no such machine. `save_seconds` before it the command `save` is run with
    `sent` on its stdin: it asks the run to write a checkpoint. `state` is a file in memory, with a log beside it.

    Its answer is a line of JSON, `{"armed": PID}`. A watchdog that was armed before is replaced, so this may be
    repeated, also for another time.
    """
    told = {
        "ending": dict(ending), "secrets": dict(secrets), "seconds": seconds, "save": list(save), "sent": sent,
        "save_seconds": save_seconds, "state": state, "again_seconds": again_seconds,
    }  # fmt: skip
    return f"{Path(__file__).read_text(encoding='utf-8')}\n\narm({json.dumps(told)!r})\n".encode()


# --- on the machine ------------------------------------------------------------------------------------------------


def arm(document: str) -> None:
    """Leave a process behind that watches, and say so once it does."""
    told = json.loads(document)
    ready, is_ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        _let_go(Path(told["state"] + ".log"))
        _replace_the_one_before(Path(told["state"]))
        os.write(is_ready, b"1")
        os.close(is_ready)
        watch(told)
        os._exit(0)
    os.close(is_ready)
    if os.read(ready, 1) != b"1":
        sys.exit("the watchdog died at once")
    print(json.dumps({"armed": child}), flush=True)


def watch(told: Mapping[str, Any]) -> None:
    """Until this machine ends, and with it this process. Returns when there is nothing left to end."""
    end = _now() + told["seconds"]
    _wait_until(end - told["save_seconds"])
    _say("time is over: the run is asked to save")
    _ask_to_save(told)
    _wait_until(end)
    while not _ended(told["ending"], told["secrets"]):
        time.sleep(told["again_seconds"])


def _wait_until(moment: float) -> None:
    while (left := moment - _now()) > 0:
        time.sleep(min(left, 60.0))


def _now() -> float:
    """Seconds since the machine started: nobody sets this clock, and it counts a suspended machine's time."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _ask_to_save(told: Mapping[str, Any]) -> None:
    """However it goes, the end is not put off."""
    if not told["save"]:
        return
    try:
        ran = subprocess.run(
            told["save"], input=told["sent"].encode(), capture_output=True, timeout=told["save_seconds"] or None
        )
        _say(f"asked to save: code {ran.returncode}")
    except (OSError, subprocess.SubprocessError) as error:
        _say(f"cannot ask the run to save: {error}")


def _ended(ending: Mapping[str, Any], secrets: Mapping[str, str]) -> bool:
    """Whether the provider no longer knows this machine. A yes to the request is no end yet: it is asked again."""
    headers = {name: string.Template(text).safe_substitute(secrets) for name, text in ending["headers"].items()}
    body = json.dumps(ending["body"]).encode()
    asked = urllib.request.Request(
        ending["url"], body, {"Content-Type": "application/json", **headers}, method=ending["method"]
    )
    try:
        with urllib.request.urlopen(asked, timeout=_CALL_SECONDS) as answer:
            _say(f"the provider was asked for the end: {answer.status}")
    except urllib.error.HTTPError as error:
        error.close()
        _say(f"the provider was asked for the end: {error.code}")
        return error.code == 404
    except (OSError, ValueError) as error:
        _say(f"the provider does not answer: {error}")
    return False


def _let_go(log: Path) -> None:
    """Of the SSH session: no terminal, no pipe, no hangup; and the last one to be killed when memory runs out."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, handle), (2, handle)):
        os.dup2(source, target)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("-1000")


def _replace_the_one_before(state: Path) -> None:
    """The lock is held as long as this process lives, so the number in the file is that of a watchdog."""
    handle = os.open(state, os.O_RDWR | os.O_CREAT, 0o600)
    while not _locked(handle):
        said = os.pread(handle, 32, 0).decode().strip()
        if said.isdigit():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(said), signal.SIGKILL)
        time.sleep(0.05)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _say(line: str) -> None:
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), line, flush=True)
