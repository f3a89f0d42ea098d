"""The machines of a rented run in its keeper's hands: taken, waited for, logged in to, given back, replaced."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from dtrain.cloud import teardown
from dtrain.cloud.choose import Choice
from dtrain.cloud.held import HeldPaths
from dtrain.cloud.keys import make_keys
from dtrain.cloud.ledger import Standing
from dtrain.cloud.machines import Machines, Terms
from dtrain.cloud.market import Market
from dtrain.cloud.meter import Meter
from dtrain.cloud.mishaps import Helpless, Taken
from dtrain.cloud.options import CloudOptions
from dtrain.cloud.order_book import OrderBook
from dtrain.cloud.provider import Instance, NoCredentials, NoRights, ProviderError
from dtrain.cloud.run_there import RunThere, Unbootable
from dtrain.cloud.stop_request import Wishes
from dtrain.cloud.telling import Telling
from dtrain.errors import LauncherRefused

BAD_HOSTS = 3
"""So many machines are given back before the run gives up: then it is not the machines."""
ASK_PROVIDER_SECONDS = 15.0
"""How often the provider is asked whether the machines are still ours, while the run goes on."""
T = TypeVar("T")
TAKEN, GIVEN_BACK = "taken by the provider", "not fit"
"""How the ledger begins to say why a machine goes."""


class Fleet:
    """Of one run. `rented` is the run on those that one is connected to."""

    def __init__(
        self, book: OrderBook, options: CloudOptions, market: Market, paths: HeldPaths, meter: Meter, tell: Telling,
        wishes: Wishes,
    ) -> None:  # fmt: skip
        self.book = book
        self.options = options
        self.market = market
        self.paths = paths
        self.meter = meter
        self.tell = tell
        self.wishes = wishes
        self.keys = make_keys(book.run_id)
        address = options.client_address or ""
        self.machines = Machines(market, Terms(book.run_id, book.nodes, options, self.keys, address, book.launcher))
        self.choice = Choice(book, options, market.providers, meter)
        self.rented: RunThere | None = None

    # --- what is there ---

    def complete(self) -> dict[int, Instance]:
        """A machine for each node: those that are there, and new ones."""
        there = self.there(may_order=True)
        self.tell.show(there)
        if there:
            self._price(max(one.usd_per_hour for one in self._standing().may_exist))
        while len(there) < self.book.nodes:
            node = min(set(range(self.book.nodes)) - set(there))
            self.tell.say("choosing", "looking for a machine")
            offer = self.choice.next(beside=next(iter(there.values()), None))
            self.tell.say(
                "creating", f"{offer.machine} in {offer.region} at {offer.provider}, ${offer.usd_per_hour:.2f}/h"
            )
            self._price(offer.usd_per_hour)
            try:
                there[node] = self.machines.create(node, offer, self.meter.remaining_seconds)
            except ProviderError as error:
                self.choice.refuse(offer, error)
                self.machines.give_back(list(there.values()), f"no second machine beside it: {error.message}")
                there = {}
            self.tell.show(there)
        return there

    def _price(self, usd_per_hour: float) -> None:
        """Of one machine; those of a run are alike."""
        self.meter.priced(usd_per_hour * self.book.nodes, self._standing().usd(time.time()))

    def booted(self, machines: dict[int, Instance]) -> dict[int, Instance]:
        """The same with addresses. Unbootable: who did not get that far in time."""
        ready = self.machines.wait_for_addresses(
            machines, self.wishes.is_wanted, lambda words: self.tell.say("booting", words)
        )
        missing = sorted(set(machines) - set(ready))
        if missing and self.wishes.is_wanted():
            raise Unbootable("the provider shows no running machine with an address in time", missing)
        self.tell.show(ready)
        return ready

    def there(self, may_order: bool = False) -> dict[int, Instance]:
        """The machines that live."""
        return self.asked(lambda: self.machines.there(may_order))

    def asked(self, question: Callable[[], T]) -> T:
        """A provider that cannot be asked ends no run: it is asked again until the limit."""
        while True:
            try:
                return question()
            except (NoCredentials, NoRights) as error:
                raise Helpless(error) from error
            except ProviderError as error:
                if self.meter.is_over():
                    raise
                self.tell.say(self.tell.progress.stage, f"asking again: {error.message}")
                time.sleep(ASK_PROVIDER_SECONDS)

    def refuse_taken(self, rented: RunThere) -> None:
        """Taken: one of them is gone, and nobody here asked for it."""
        try:
            there = self.machines.there()
        except ProviderError as error:  # unreachable is not gone
            self.tell.say("training", f"not asked whether the machine is still ours: {error.message}")
            return
        gone = [one.name for node, one in rented.instances.items() if node not in there]
        if gone:
            raise Taken(f"{', '.join(gone)} is gone, and nobody here asked for it")

    # --- the line to them ---

    def connect(self, instances: dict[int, Instance]) -> RunThere:
        self.close()
        self.rented = RunThere(self.book, self.options, self.paths, self.keys, instances)
        return self.rented

    def close(self) -> None:
        if self.rented is not None:
            self.rented.close()

    # --- what goes ---

    def give_back(self, nodes: Sequence[int], error: LauncherRefused) -> None:
        """Bad hosts go, and their offer comes last from now on. LauncherRefused when it is not the machines."""
        there = self.there()
        bad = [there[node] for node in nodes if node in there]
        self.machines.give_back(bad, f"{GIVEN_BACK}: {error.message}")
        for instance in bad:
            self.choice.note_bad(instance)
        tried = [one for one in self._standing().of_this_life if one.why.startswith(GIVEN_BACK)]
        if len(tried) >= BAD_HOSTS:
            raise LauncherRefused(f"{len(tried)} machines were given back, the last: {error.message}")
        self.tell.run_sent(False)
        self.tell.say("choosing", f"given back: {error.message}")

    def let_go(self, why: str) -> None:
        """Of a machine that the provider takes, and of those beside it: the next ones go on."""
        self.close()
        going = [*self.there().values(), *self.asked(self._leaving)]
        self.asked(lambda: self.machines.give_back(going, f"{TAKEN}: {why}"))
        self.tell.run_sent(False)

    def _leaving(self) -> list[Instance]:
        """Machines that stop or were announced to: still listed, not ours to use."""
        names = {one.name for one in self._standing().may_exist if one.state == "created"}
        listed = teardown.existing(self.market, self.book.run_id)
        return [one for one in listed if one.name in names and (one.preempted or one.state in ("stopping", "stopped"))]

    def _standing(self) -> Standing:
        return self.market.ledger.begun_standing()
