"""Machines that no live run owns: found by the ledgers here and by asking the providers, saved from, ended.

A machine of a run that was started from another computer is listed and left alone, unless its run is named: that
computer may be keeping it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dtrain.cloud import teardown
from dtrain.cloud.keys import keys_of, remove_keys
from dtrain.cloud.launcher import CloudLauncher, cloud_launchers
from dtrain.cloud.ledger import Ledger, Standing, all_ledgers
from dtrain.cloud.market import patiently
from dtrain.cloud.options import CloudOptions
from dtrain.cloud.order_book import OrderBook
from dtrain.cloud.progress import has_keeper, kept
from dtrain.cloud.provider import Instance, NoCredentials
from dtrain.cloud.rental import Rental
from dtrain.cloud.stop_request import StopRequest
from dtrain.errors import DtrainError, PartMissing
from dtrain.launch import shared
from dtrain.paths import RunPaths

Say = Callable[[str], None]
NOBODY = "collected: nobody was keeping it"


@dataclass(frozen=True)
class Stray:
    """A run whose machines may exist, and that nobody keeps."""

    run_id: str
    launcher: str
    output: str | None
    """Its folder here; None: it was started from another computer."""
    machines: Sequence[str]
    """As a person finds them: provider, id, name, link."""
    usd_per_hour: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Survey:
    """What was found, and who was asked."""

    strays: Sequence[Stray]
    asked: Sequence[str]
    """Providers that told what they have of ours."""
    problems: Sequence[str]
    """Who could not be asked, and why; a provider without credentials only where a ledger names it."""
    without_credentials: Sequence[str]


def survey(only: str | None = None) -> Survey:
    """Every run that nobody keeps, or this one alone."""
    launchers = cloud_launchers()
    open_ledgers = {one.run_id: standing for one in all_ledgers() if (standing := _open(one)) is not None}
    listed, asked, problems = _listed(launchers, {one.launcher for one in open_ledgers.values()})
    found = [_of_ledger(standing, listed) for standing in open_ledgers.values() if not _is_kept(standing)]
    known = set(open_ledgers) | {one.run_id for one in all_ledgers() if not _is_over(one)}
    for run_id in sorted({one.run_id for one in listed} - known):
        machines = [one for one in listed if one.run_id == run_id]
        ended_here = Ledger(run_id).standing()  # its machine appeared after everybody had given up on it
        output = ended_here.output if ended_here is not None else None
        found.append(Stray(run_id, machines[0].provider, output, [_told(one) for one in machines], 0.0))
    silent = sorted(set(launchers) - set(asked) - {one.partition(":")[0] for one in problems})
    return Survey([one for one in found if only in (None, one.run_id)], asked, problems, silent)


def collect(stray: Stray, named: bool, say: Say) -> str:
    """End it; what became of it, on a line. StillBilled, or the error that kept its results from coming home.

    `named`: the person said this run, also if it was started elsewhere.
    """
    if stray.output is None:
        return _end_foreign(stray, named, say)
    paths = RunPaths(Path(stray.output))
    book = OrderBook.read(paths)
    if book is None or (stray.machines and keys_of(stray.run_id) is None):
        return _end_without_saving(stray, say)
    with kept(paths) as is_mine:
        if not is_mine:
            return "a keeper lives again: left alone"
        StopRequest(False, NOBODY).write(paths)
        launcher = _launcher(book.launcher)
        options = launcher.options_of(book.options)
        rental = Rental(paths, book, options, launcher.market(options, Ledger(stray.run_id)))
        rental.drive()
    if rental.unfinished is not None:
        raise rental.unfinished
    return rental.tell.progress.words


def _end_foreign(stray: Stray, named: bool, say: Say) -> str:
    if not named:
        return f"started from another computer: left alone. dtrain gc {stray.run_id} ends it, and what it made is lost"
    return _end_without_saving(stray, say)


def _end_without_saving(stray: Stray, say: Say) -> str:
    """No key to log in with: there is nothing that could be saved from here."""
    launcher = _launcher(stray.launcher)
    ledger = Ledger(stray.run_id)
    market = launcher.market(CloudOptions(), ledger)
    if ledger.standing() is None:
        ledger.begun(stray.launcher, Path("/"))
    teardown.destroy_all(market, stray.run_id, NOBODY, 1.0, say)
    if stray.output is not None and Path(stray.output).is_dir():
        shared.note_interrupted(RunPaths(Path(stray.output)), NOBODY)
    ledger.ended(NOBODY)
    remove_keys(stray.run_id)
    return "ended; there was no key here to save anything with"


def _launcher(name: str) -> CloudLauncher:
    found = cloud_launchers()
    if name not in found:
        raise PartMissing.of(f"the launcher {name!r}", name, "ending what it rented")
    return found[name]


def _listed(launchers: dict[str, CloudLauncher], needed: set[str]) -> tuple[list[Instance], list[str], list[str]]:
    """What the providers say that there is of ours, who said it, and who could not though a run needs it."""
    found: list[Instance] = []
    asked = []
    problems = [f"{name}: its launcher is not installed" for name in sorted(needed - set(launchers))]
    for name, launcher in launchers.items():
        try:
            provider = launcher.provider(CloudOptions())
            found += patiently(provider.find, 10.0)
            asked.append(name)
        except (NoCredentials, PartMissing) as error:
            if name in needed:
                problems.append(f"{name}: {error}")
        except DtrainError as error:
            problems.append(f"{name}: {error}")
    return found, asked, problems


def _open(ledger: Ledger) -> Standing | None:
    standing = ledger.standing()
    return standing if standing is not None and not standing.ended else None


def _is_over(ledger: Ledger) -> bool:
    standing = ledger.standing()
    return standing is None or standing.ended


def _is_kept(standing: Standing) -> bool:
    return has_keeper(RunPaths(Path(standing.output)))


def _of_ledger(standing: Standing, listed: Sequence[Instance]) -> Stray:
    there = [one for one in listed if one.run_id == standing.run_id]
    told = [_told(one) for one in there]
    names = {one.name for one in there}
    told += [f"{one.provider} {one.name}, perhaps" for one in standing.may_exist if one.name not in names]
    rate = sum(one.usd_per_hour for one in standing.may_exist)
    return Stray(standing.run_id, standing.launcher, standing.output, told, rate)


def _told(one: Instance) -> str:
    return f"{one.provider} {one.id} ({one.name}, {one.state}) in {one.region} {one.console}".rstrip()
