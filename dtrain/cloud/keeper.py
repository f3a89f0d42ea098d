"""`python -m dtrain.cloud.keeper RUN_FOLDER`: the process that keeps a rented run until its machines are gone.

Detached from whoever started it; one for each run. It may be killed at any instruction and started again.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from dtrain.cloud.progress import has_keeper, kept
from dtrain.own_process import speak_into
from dtrain.paths import RunPaths

AGAIN_SECONDS = 3.0


def start(paths: RunPaths) -> None:
    """A keeper for the run, unless one lives."""
    if has_keeper(paths) or _was_started_just_now(paths):
        return
    subprocess.run(
        ["sh", "-c", '"$@" &', "sh", *command_of(paths)], start_new_session=True, check=True, cwd="/",
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def command_of(paths: RunPaths) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "dtrain.cloud.keeper", str(paths.output))


def _was_started_just_now(paths: RunPaths) -> bool:
    """One that dies at once is not started ten times a second."""
    mark = paths.rented / "keeper.started"
    try:
        if 0 <= time.time() - mark.stat().st_mtime < AGAIN_SECONDS:
            return True
    except FileNotFoundError:
        mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return False


def main(arguments: list[str]) -> int:
    paths = RunPaths(Path(arguments[0]))
    speak_into(paths.keeper_log)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with kept(paths) as is_mine:
        if is_mine:
            _keep(paths)
    return 0


def _keep(paths: RunPaths) -> None:
    from dtrain.cloud.launcher import CloudLauncher
    from dtrain.cloud.ledger import Ledger
    from dtrain.cloud.order_book import OrderBook
    from dtrain.cloud.rental import Rental
    from dtrain.launch.load import load

    book = OrderBook.read(paths)
    assert book is not None, "submit writes it before it starts a keeper"
    launcher = load(book.launcher)
    assert isinstance(launcher, CloudLauncher)
    options = launcher.options_of(book.options)
    market = launcher.market(options, Ledger(book.run_id))
    Rental(paths, book, options, market).drive()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
