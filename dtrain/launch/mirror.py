"""A local run folder that follows the run's own folder elsewhere: metrics, logs, state, and exit.json last.

So that status, logs, attach and the screen read one kind of folder, wherever the run is.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dtrain.errors import Unreachable
from dtrain.files import write_json, write_whole
from dtrain.launch.agent import LOOK_BYTES
from dtrain.launch.api import Status
from dtrain.launch.ending import DONE, Ending, read_or_none
from dtrain.launch.nodes import first_ending
from dtrain.paths import RunPaths

Look = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Asks a machine's agent: what the client has → status and news."""
LAST = ("exit.json",)


class Mirror:
    """Of a run on `machines` machines. Two clients at once take turns."""

    def __init__(self, paths: RunPaths, machines: Sequence[str]) -> None:
        self.paths = paths
        self.machines = machines

    def follow(self, number: int, look: Look) -> Mapping[str, Any]:
        """Bring what is new on one machine. Its last answer: status, placed."""
        with self._turn():
            have = self._have(number)
            while True:
                answer = look(have)
                news = sorted(answer["news"], key=lambda one: one["name"] in LAST)
                more = any(len(one["data"]) >= LOOK_BYTES for one in news)
                for one in news:
                    if more and one["name"] in LAST:
                        continue
                    if self._take(number, one):
                        have[one["name"]] = _known(one)
                self._remember(str(number), have)
                if not more:
                    break
            if number == 0:
                self._forget_checkpoints(set(answer["checkpoints"]))
            return answer

    def seen(self, status: Status) -> None:
        """The last word, kept for when the machines do not answer."""
        with self._turn():
            self._remember("seen", {"time": round(time.time(), 3), **asdict(status)})

    def last_seen(self) -> tuple[float, Status] | None:
        told = (read_or_none(self.paths.mirror) or {}).get("seen")
        return None if told is None else (told["time"], Status(told["state"], told["exit_code"], told["reason"]))

    def unreachable(self, error: Unreachable) -> Status:
        """Unreachable is not dead: it counts as what it was when it was last seen."""
        last = self.last_seen()
        if last is None:
            return Status("pending", None, f"{error.message}; it was not seen yet")
        when = time.strftime("%H:%M:%S", time.localtime(last[0]))
        return replace(last[1], reason=f"{error.message}; last seen {when}: {last[1].reason}")

    def conclude(self) -> None:
        """Several machines: their endings become the run's one exit.json."""
        if len(self.machines) < 2:
            return
        endings = [Ending.read_from(self.paths.node(number).ending) for number in range(len(self.machines))]
        first = endings[0]
        if first is None or None in endings:
            return
        failed = any(one is not None and one.state == "failed" for one in endings)
        ending = first_ending(self.paths, endings, self.machines) if failed or first.code == DONE else first
        # the last of them: a resume puts aside, on every machine, what ended until then
        replace(ending, ended=max(one.ended for one in endings if one is not None)).write(self.paths)

    def begin_anew(self) -> None:
        """Before another life of the run: what the machines said of the last one is forgotten."""
        shutil.rmtree(self.paths.run / "nodes", ignore_errors=True)

    def _take(self, number: int, news: Mapping[str, Any]) -> bool:
        """Write one piece of news; False when it does not fit what is here, and must be sent again."""
        target = self._place(number, news["name"])
        data = base64.b64decode(news["data"])
        if target is None or (news["name"] == "exit.json" and self._is_of_a_past_life(data)):
            return True
        if not news.get("offset"):
            write_whole(target, data, durable=False)
            return True
        if not target.exists() or target.stat().st_size != news["offset"]:
            return False
        with target.open("ab") as stream:
            stream.write(data)
        return True

    def _is_of_a_past_life(self, ending: bytes) -> bool:
        """Put aside here by a resume, and not yet there."""
        last = last_ended(self.paths)
        return last is not None and json.loads(ending)["ended"] <= last

    def _place(self, number: int, name: str) -> Path | None:
        """Where a machine's file belongs here. Of the machines after the first only logs and endings count."""
        if name == "exit.json" and len(self.machines) > 1:
            return self.paths.node(number).ending
        if name == "exit.json" and number == 0:
            return self.paths.exit
        if number == 0:
            return self.paths.run / name
        if name == "logs/launch.log":
            return self.paths.node(number).log
        return self.paths.run / name if name.startswith("logs/") else None

    def _have(self, number: int) -> dict[str, Any]:
        """What is here and still as it was left: a file that somebody took away is asked for again."""
        told = (read_or_none(self.paths.mirror) or {}).get(str(number), {})
        return {name: known for name, known in told.items() if self._is_here(number, name, known)}

    def _is_here(self, number: int, name: str, known: Mapping[str, Any]) -> bool:
        place = self._place(number, name)
        if place is None:
            return True
        return place.exists() and ("offset" not in known or place.stat().st_size == known["offset"])

    def _forget_checkpoints(self, there: set[int]) -> None:
        """A checkpoint that was deleted there, and of which only the manifest is here, is gone."""
        for manifest in self.paths.checkpoints.glob("step-*/manifest.json"):
            step = manifest.parent.name.removeprefix("step-")
            if step.isdigit() and int(step) not in there and len(list(manifest.parent.iterdir())) == 1:
                shutil.rmtree(manifest.parent, ignore_errors=True)

    def _remember(self, key: str, told: Mapping[str, Any]) -> None:
        document = read_or_none(self.paths.mirror) or {"schema_version": 1}
        write_json(self.paths.mirror, {**document, key: told}, durable=False)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        handle = os.open(self.paths.mirror_lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def last_ended(paths: RunPaths) -> float | None:
    """When the last life that was put aside here ended."""
    endings = [read_or_none(path) for path in paths.past.glob("*/exit.json")]
    return max((ending["ended"] for ending in endings if ending), default=None)


def _known(news: Mapping[str, Any]) -> dict[str, Any]:
    if "tag" in news:
        return {"tag": news["tag"]}
    size = len(base64.b64decode(news["data"]))
    return {"inode": news["inode"], "offset": news["offset"] + size}
