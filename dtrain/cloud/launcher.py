"""A launcher over any provider of rented machines. A provider's own launcher says its name and its class:

class AwsLauncher(CloudLauncher):
    name = "aws"
    provider_class = AwsProvider
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from dtrain.cloud import address, estimate, keeper
from dtrain.cloud.choose import need_of, offers
from dtrain.cloud.estimate import Estimate
from dtrain.cloud.held import HeldPaths
from dtrain.cloud.keys import keys_of
from dtrain.cloud.ledger import Ledger
from dtrain.cloud.machines import Terms, order_of
from dtrain.cloud.market import Market
from dtrain.cloud.options import BASE, CloudOptions, read_options
from dtrain.cloud.order_book import OrderBook
from dtrain.cloud.progress import BEFORE_TRAINING, Progress, has_keeper, money_words
from dtrain.cloud.provider import Instance, Need, NoSuchMachine, Offer, Provider
from dtrain.cloud.run_there import RunThere
from dtrain.cloud.stop_request import StopRequest
from dtrain.errors import BadInput, LauncherRefused, RunFailed
from dtrain.launch import bundle, runlogs, shared, tunnel
from dtrain.launch.api import Handle, Job, Rendered, Status
from dtrain.launch.machine import Machine
from dtrain.launch.spec import LaunchSpec, spec_for
from dtrain.launch.tunnel import Host
from dtrain.paths import RunPaths

POLL_SECONDS = 0.2
PERSON_WAITS_SECONDS = 12.0
"""How long a provider that does not answer is asked again while somebody looks on; a keeper has more patience."""
KEEPER_SECONDS = 30.0
"""Until a keeper that was started holds its run."""


class CloudLauncher:
    name: str
    provider_class: ClassVar[Callable[[Mapping[str, Any]], Provider]]
    """Made with what is not in `cloud.options` of `launchers.NAME`; it refuses what it does not know."""

    def __init__(self) -> None:
        self._offers: dict[tuple[Need, str], Sequence[Offer]] = {}

    # --- six methods ---

    def check(self, job: Job | None = None) -> list[str]:
        tunnel.require_fabric()
        if job is None:
            return []
        options = self.options_of(job.options)
        found = self._market_offers(job, options)
        if job.nodes > 1 and not self.provider(options).abilities.several_nodes:
            return [f"{self.name} joins no machines to a run on {job.nodes} nodes: take a profile with one node"]
        if not found:
            return [f"{self.name} has no machine for this profile: dtrain rent FILE lists who has one"]
        estimate.affordable(found, job.nodes, job.plan, options)
        return self._switch_problems(options)

    def render(self, job: Job) -> Rendered:
        options = self.options_of(job.options)
        offer = self._first_offer(job, options)
        if offer is None:
            return Rendered(commands=_commands(job, options), notes=("no machine on offer fits this profile",))
        told = estimate.estimate(offer, job.nodes, job.plan, options)
        provider = self.market(options, Ledger(job.run_id)).providers[offer.provider]
        terms = Terms(job.run_id, job.nodes, options, None, options.client_address or address.HIDDEN, self.name)
        orders = [order_of(terms, node, 1, offer, told.limit_hours * 3600) for node in range(job.nodes)]
        requests = tuple(request for order in orders for request in provider.requests(order))
        files = {f"{offer.machine}:{_folder(job)}/{name}": text for name, text in _documents(job, options).items()}
        return Rendered(files, _commands(job, options), told.usd_per_hour, _notes(job, options, offer, told), requests)

    def submit(self, job: Job, rendered: Rendered) -> Handle:
        """Returns once a machine is ordered. LauncherRefused where nothing was rented."""
        self.begin(job)
        self._wait_until_ordered(RunPaths(job.folder))
        return Handle(self.name, job.run_id, str(job.folder), {"provider": self.name})

    def begin(self, job: Job) -> None:
        """The first half of a submit: all is written down, and a keeper lives."""
        paths = RunPaths(job.folder)
        with shared.one_at_a_time(paths):
            if shared.ended(paths) is None and not self._is_under_way(paths, job.run_id):
                self._note(job, paths)
            if shared.ended(paths) is None:
                keeper.start(paths)

    def status(self, handle: Handle) -> Status:
        """What its keeper wrote; a run that lost its keeper gets another."""
        paths = RunPaths(Path(handle.folder))
        ended = shared.ended(paths)
        if ended is not None:
            return ended
        progress = Progress.read(paths)
        standing = Ledger(handle.run_id).standing()
        if standing is None or OrderBook.read(paths) is None:
            return Status("lost", None, "nothing was rented for it from here; dtrain gc lists what exists")
        if progress is not None and progress.over and progress.refused:
            return Status("failed", LauncherRefused.exit_code, progress.words)
        if standing.ended:  # exit.json was written before that, or there is none
            return shared.ended(paths) or Status("lost", None, standing.reason)
        if not has_keeper(paths):
            keeper.start(paths)
        return _status(progress)

    def logs(self, handle: Handle, follow: bool) -> Iterator[str]:
        paths = RunPaths(Path(handle.folder))
        return runlogs.merged(paths, follow, lambda: self.status(handle).state not in ("running", "pending"))

    def cancel(self, handle: Handle) -> None:
        self._end(handle, at_once=False)

    def kill(self, handle: Handle) -> None:
        self._end(handle, at_once=True)

    def fetch(self, handle: Handle, checkpoints: str | None, say: Callable[[str], None]) -> tuple[int, int]:
        """While its machine is up; after that everything is home already."""
        paths = RunPaths(Path(handle.folder))
        book, keys, progress = OrderBook.read(paths), keys_of(handle.run_id), Progress.read(paths)
        if book is None or keys is None or progress is None or not progress.machines:
            return 0, 0
        options = self.options_of(book.options)
        there = {one.node: one.instance for one in self._rented(handle.run_id) if one.instance is not None}
        if len(there) < book.nodes:
            return 0, 0
        rented = RunThere(book, options, HeldPaths(paths.output), keys, _with_addresses(there, progress))
        brought = rented.far.fetch(checkpoints, say)
        rented.close()
        return brought.files, brought.brought_bytes

    # --- parts ---

    def options_of(self, told: Mapping[str, Any]) -> CloudOptions:
        return read_options(self.name, told)

    def provider(self, options: CloudOptions) -> Provider:
        return type(self).provider_class(options.own)

    def market(self, options: CloudOptions, ledger: Ledger) -> Market:
        """This provider, with --anywhere every other one that is installed, and those that the ledger names."""
        standing = ledger.standing()
        used = {one.provider for one in standing.machines.values()} if standing else set()
        others = {
            name: launcher.provider(read_options(name, {}))
            for name, launcher in cloud_launchers().items()
            if name != self.name and (options.anywhere or name in used)
        }
        return Market({self.name: self.provider(options), **others}, ledger)

    def _market_offers(self, job: Job, options: CloudOptions) -> Sequence[Offer]:
        need = need_of(gpu_of(job), job.ranks_per_node, job.nodes, options)
        key = (need, repr(options))
        if key not in self._offers:
            providers = self.market(options, Ledger(job.run_id)).providers
            self._offers[key] = offers(need, options, self.name, providers, PERSON_WAITS_SECONDS)
        return self._offers[key]

    def _first_offer(self, job: Job, options: CloudOptions) -> Offer | None:
        try:
            found = self._market_offers(job, options)
        except NoSuchMachine:
            return None
        return min(found, key=lambda one: one.usd_per_hour, default=None)

    def _switch_problems(self, options: CloudOptions) -> list[str]:
        """No switch that ends a machine without anybody: refused, unless the person wants it so."""
        abilities = self.provider(options).abilities
        if not options.watchdog or abilities.server_side_limit or abilities.shutdown_ends_billing:
            return []
        key = abilities.watchdog_key
        if key is not None and os.environ.get(key):
            return []
        wanted = f"set {key}, so that a watchdog on the machine can end it" if key else "it has none"
        return [f"{self.name} has no switch that ends a machine when nobody is there: {wanted}, or say --no-watchdog"]

    def _is_under_way(self, paths: RunPaths, run_id: str) -> bool:
        standing = Ledger(run_id).standing()
        return standing is not None and not standing.ended and OrderBook.read(paths) is not None

    def _note(self, job: Job, paths: RunPaths) -> None:
        """The order book, then the ledger's first line: from here on a keeper may be started by anybody."""
        options = self.options_of(job.options)
        offer = self._first_offer(job, options)
        hours = estimate.billed_hours(job.plan)
        told = estimate.estimate(offer, job.nodes, job.plan, options) if offer else None
        seen = {**job.options, "client_address": address.client_address(options)}
        HeldPaths(paths.output).exit.unlink(missing_ok=True)
        StopRequest.forget(paths)
        book = _book(self.name, replace(job, options=seen), options, hours, told.limit_hours if told else hours)
        book.write(paths)
        ledger = Ledger(job.run_id)
        ledger.begun(self.name, job.folder)
        standing = ledger.standing()
        Progress.fresh(job.run_id, standing.life if standing else 1).write(paths)

    def _wait_until_ordered(self, paths: RunPaths) -> None:
        seen = time.monotonic()
        while shared.ended(paths) is None:
            progress = Progress.read(paths)
            if progress is not None and progress.refused is not None:
                raise _as_refusal(progress.refused)
            if progress is not None and (progress.machines or progress.stage not in ("choosing", "creating")):
                return
            if has_keeper(paths):
                seen = time.monotonic()
            elif time.monotonic() - seen > KEEPER_SECONDS:
                raise RunFailed(
                    "the run's keeper ended before it ordered a machine", file=str(paths.keeper_log),
                    fix="dtrain attach RUN starts another",
                )  # fmt: skip
            time.sleep(POLL_SECONDS)

    def _end(self, handle: Handle, at_once: bool) -> None:
        """Returns when the machines are gone and exit.json says how it ended."""
        paths = RunPaths(Path(handle.folder))
        standing = Ledger(handle.run_id).standing()
        if shared.ended(paths) is not None or standing is None or standing.ended:
            return
        StopRequest(at_once).write(paths)
        while shared.ended(paths) is None:
            standing = Ledger(handle.run_id).standing()
            if standing is not None and standing.ended:
                return
            keeper.start(paths)
            time.sleep(POLL_SECONDS)

    def _rented(self, run_id: str) -> list[Any]:
        standing = Ledger(run_id).standing()
        return [one for one in standing.may_exist if one.state == "created"] if standing else []


def cloud_launchers() -> dict[str, CloudLauncher]:
    """Every installed launcher over rented machines, by name; one whose extra is missing is left out."""
    from dtrain.launch.load import load_all

    return {name: found for name, found in load_all()[0].items() if isinstance(found, CloudLauncher)}


def _status(progress: Progress | None) -> Status:
    if progress is None:
        return Status("pending", None, "its keeper is starting")
    words = f"{progress.words}; {money_words(progress)}"
    return Status("pending" if progress.stage in BEFORE_TRAINING else "running", None, words)


def _as_refusal(told: Mapping[str, Any]) -> LauncherRefused | BadInput:
    kind = BadInput if told["code"] == BadInput.exit_code else LauncherRefused
    return kind(told["message"], **{key: value for key, value in told.items() if key not in ("code", "message")})


def _with_addresses(there: Mapping[int, Instance], progress: Progress) -> dict[int, Instance]:
    """A machine has its address only some time after it was created."""
    known = {one["name"]: one for one in progress.machines}
    return {
        node: replace(one, address=known[one.name]["address"], port=known[one.name]["port"])
        for node, one in there.items()
        if one.name in known
    }


# --- what is sent -------------------------------------------------------------------------------------------------


def _folder(job: Job) -> str:
    return f"{BASE}/runs/{job.run_id}"


def _machine(options: CloudOptions) -> Machine:
    return Machine(Host("ADDRESS", "root"), BASE, options.python, options.venv)


def _documents(job: Job, options: CloudOptions) -> dict[str, str]:
    """Name in the run's folder there → content; the same on each node."""
    folder = _folder(job)
    config, _ = bundle.moved(job.config, folder)
    about = {
        "schema_version": 1, "id": job.run_id, "name": job.name, "launcher": "ssh", "folder": folder,
        "nodes": job.nodes, "ranks_per_node": job.ranks_per_node, "device": job.device,
    }  # fmt: skip
    told = {"config.yaml": config, "plan.json": dict(job.plan), "run.json": about}
    texts = {f"dtrain/{name}": json.dumps(one, indent=2, ensure_ascii=False) + "\n" for name, one in told.items()}
    return {**texts, "dtrain/launch.json": _spec(job, options).as_text()}


def _spec(job: Job, options: CloudOptions) -> LaunchSpec:
    import sys

    folder, python = _folder(job), _machine(options).agent_python
    there = replace(
        job, folder=Path(folder), working_directory=f"{folder}/{bundle.PROJECT}" if options.project else folder
    )
    env = {"DTRAIN_HOME": f"{BASE}/home", **(options.env or {})}
    spec = spec_for(there, grace_seconds=options.grace_seconds, env=env)
    prepare, ranks = (
        tuple(python if word == sys.executable else word for word in words) for words in (spec.prepare, spec.ranks)
    )
    return replace(spec, prepare=prepare, ranks=ranks, nodes=1)


def gpu_of(job: Job) -> str:
    """Catalogue name; `cpu` for none."""
    return str(job.plan.get("profile", {}).get("gpu", "cpu")) if job.device == "cuda" else "cpu"


def _book(launcher: str, job: Job, options: CloudOptions, hours: float, limit_hours: float) -> OrderBook:
    _, inputs = bundle.moved(job.config, "")
    if options.project:
        inputs += bundle.tracked_files(Path(job.working_directory or os.getcwd()))
    return OrderBook(
        run_id=job.run_id, launcher=launcher, options=dict(job.options), gpu=gpu_of(job), nodes=job.nodes,
        ranks_per_node=job.ranks_per_node, device=job.device,
        extras=_extras(job, options), plan=dict(job.plan),
        files=_documents(job, options), inputs=[(str(one.local), one.there) for one in inputs],
        estimated_hours=hours, limit_hours=limit_hours,
    )  # fmt: skip


def _extras(job: Job, options: CloudOptions) -> list[str]:
    wandb = ["wandb"] if job.config.get("wandb_project") else []
    return ["train", *wandb, *(["aws"] if (options.output or "").startswith("s3:") else [])]


def _commands(job: Job, options: CloudOptions) -> tuple[tuple[str, ...], ...]:
    python = _machine(options).agent_python
    told = ((python, "-P", "-m", "dtrain.launch.agent", verb) for verb in ("place", "start"))
    return tuple(("ssh", "root@ADDRESS", *words) for words in told)


def _notes(job: Job, options: CloudOptions, offer: Offer, told: Estimate) -> tuple[str, ...]:
    where = f"{offer.machine} in {offer.region} at {offer.provider}" + (" (spot)" if offer.spot else "")
    how_many = f"{job.nodes} × {where}" if job.nodes > 1 else where
    return (f"{how_many}: {told.in_words()}", "results come home, verified, before the machine is ended")
