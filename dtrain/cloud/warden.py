"""What looks after a run on its rented machine when nobody else can: `python -m dtrain.cloud.warden`, JSON on stdin.

It asks the provider's metadata service whether the machine is about to be taken away, and knows when the run's limit is
reached. Either way the run is told to save and stop, and the reason is left in `notice.json` for whoever asks. With
`output` every checkpoint goes there as soon as it is whole, and the model when the run is done. The machine's end
itself was armed at boot and needs no warden.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dtrain.cloud import push
from dtrain.files import write_json
from dtrain.launch import here
from dtrain.launch.standing import folder_status
from dtrain.own_process import speak_into
from dtrain.paths import RunPaths

METADATA = "http://169.254.169.254"
"""The same address at AWS and GCP; a link-local one that never leaves the machine."""
ASK_SECONDS = 2.0
NOTICE = "notice.json"


@dataclass(frozen=True)
class Duty:
    """What a warden is told."""

    folder: str
    """The run's output folder here."""
    run_id: str
    provider: str
    stop_seconds: float
    """From now on: then the run saves and stops."""
    stop_words: str
    output: str | None
    secrets: Mapping[str, str]
    poll_seconds: float = 5.0
    """AWS asks for no more than one look in five seconds."""


def watch(duty: Duty) -> None:
    """Until the run is over and what it made is where it should be."""
    paths = RunPaths(Path(duty.folder))
    end = _now() + duty.stop_seconds
    sent = push.Sent(duty.output)
    while True:
        status = folder_status(paths)
        over = status is not None and status.state != "running"
        sent.bring_up_to_date(paths, over)
        if over:
            return
        why = taken_words(duty.provider) or (duty.stop_words if _now() > end else None)
        if why is not None:
            _stop(paths, duty, why, taken=_now() <= end)
        time.sleep(duty.poll_seconds)


def _stop(paths: RunPaths, duty: Duty, why: str, taken: bool) -> None:
    print(f"{why}: the run is told to save and stop", flush=True)
    write_json(paths.run / NOTICE, {"why": why, "taken": taken})
    here.stop(paths, duty.run_id)


def _now() -> float:
    """Seconds since the machine started: nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# --- notices of the providers -------------------------------------------------------------------------------------


def taken_words(provider: str, metadata: str = METADATA) -> str | None:
    """Why the machine is about to be taken away; None: it is not, or nobody tells."""
    try:
        return _ASK[provider](metadata) if provider in _ASK else None
    except (OSError, ValueError):
        return None


def _aws(metadata: str) -> str | None:
    """IMDSv2: a token first, then 404 until two minutes before the end."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _said("PUT", f"{metadata}/latest/api/token", lifetime)
    told = _said("GET", f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token or ""})
    if told is None:
        return None
    notice = json.loads(told)
    return f"AWS takes the spot machine back ({notice['action']} at {notice['time']})"


def _gcp(metadata: str) -> str | None:
    told = _said("GET", f"{metadata}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    return "GCP takes the spot machine back" if told == "TRUE" else None


_ASK = {"aws": _aws, "gcp": _gcp}


def _said(method: str, url: str, headers: Mapping[str, str]) -> str | None:
    """None for a page that is not there."""
    try:
        request = urllib.request.Request(url, method=method, headers=dict(headers))
        with urllib.request.urlopen(request, timeout=ASK_SECONDS) as answer:
            return str(answer.read(4096).decode()).strip()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return None
        raise


# --- the process --------------------------------------------------------------------------------------------------


def main() -> int:
    """Leave a process behind that watches. One for each run; a second call changes nothing."""
    told: dict[str, Any] = json.load(sys.stdin)
    duty = Duty(**{one.name: told[one.name] for one in fields(Duty) if one.name in told})
    if os.fork() == 0:
        os.setsid()
        _keep_watch(duty)
    print("\n" + json.dumps({"watching": True}), flush=True)
    return 0


def _keep_watch(duty: Duty) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    paths = RunPaths(Path(duty.folder))
    handle = os.open(os.devnull, os.O_RDONLY)
    os.dup2(handle, 0)
    speak_into(paths.logs / "warden.log")
    lock = os.open(paths.run / "warden.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.environ.update(duty.secrets)  # in this process's memory alone
        watch(duty)
    except BlockingIOError:
        pass  # another one watches
    finally:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
