"""One life of a rented run, driven to its end: choose, create, boot, prepare, train, fetch, destroy.

Every step may be repeated: what exists is read from the ledger and asked of the provider, so a keeper that was killed
anywhere is replaced by another that goes on. A machine that is not fit is given back and another taken; one that the
provider took is replaced, and the run goes on from its last checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from dtrain.cloud import teardown
from dtrain.cloud.arming import arm_watchdogs
from dtrain.cloud.choose import Choice
from dtrain.cloud.held import HeldPaths
from dtrain.cloud.homeward import Homeward
from dtrain.cloud.keys import make_keys, remove_keys
from dtrain.cloud.ledger import Standing
from dtrain.cloud.machines import Machines, Terms
from dtrain.cloud.market import Market
from dtrain.cloud.meter import Meter
from dtrain.cloud.mishaps import Helpless, Taken, as_told, ending_of, in_a_line
from dtrain.cloud.options import CloudOptions
from dtrain.cloud.order_book import OrderBook
from dtrain.cloud.provider import Instance, NoCredentials, NoRights, ProviderError
from dtrain.cloud.run_there import RunThere, Unbootable, last_whole_checkpoint
from dtrain.cloud.stop_request import StopRequest
from dtrain.cloud.telling import Telling
from dtrain.errors import DtrainError, LauncherRefused, StillBilled, Unreachable
from dtrain.launch.ending import INTERRUPTED, Ending, interrupted, put_aside
from dtrain.launch.far import Unfit
from dtrain.paths import RunPaths

BAD_HOSTS = 3
"""So many machines are given back before the run gives up: then it is not the machines."""
ASK_PROVIDER_SECONDS = 15.0
"""How often the provider is asked whether the machines are still ours, while the run goes on."""
T = TypeVar("T")
TAKEN, GIVEN_BACK = "taken by the provider", "not fit"
"""How the ledger begins to say why a machine goes."""


class Rental:
    def __init__(self, paths: RunPaths, book: OrderBook, options: CloudOptions, market: Market) -> None:
        self.paths = HeldPaths(paths.output)
        self.book = book
        self.options = options
        self.market = market
        self.ledger = market.ledger
        self.keys = make_keys(book.run_id)
        terms = Terms(book.run_id, book.nodes, options, self.keys, options.client_address or "")
        self.machines = Machines(market, terms)
        self.meter = Meter(book, options, self._standing())
        self.choice = Choice(book, options, market.providers, self.meter)
        self.tell = Telling(paths, book, self._standing)
        self.home = Homeward(options, self.meter, self.tell)
        self.rented: RunThere | None = None
        self.unfinished: DtrainError | None = None
        """Why the run is not over though this keeper has done what it can."""

    # --- the road ---

    def drive(self) -> None:
        """To the end: exit.json is published, or the refusal is told, and the ledger is closed."""
        if self._standing().ended:
            return
        try:
            ending = self._decided() or self._live()
            ending = self._brought_home(ending)
        except Helpless as error:
            self.unfinished = error.why
            self.tell.say(
                self.tell.progress.stage, f"{error.why.message}: its keeper left, dtrain attach sends another"
            )
            return
        except Exception as error:  # whatever it is: no machine may be left
            told = as_told(error)
            if self._was_nothing_rented():
                self._refused(told)
                return
            ending = self._saved(ending_of(told, self.paths))
        finally:
            if self.rented is not None:
                self.rented.close()
        self._close(ending)

    def _saved(self, ending: Ending) -> Ending:
        """After a failure of the road itself: what is there comes home, if it can."""
        ending.write(self.paths)
        try:
            return self._brought_home(ending)
        except DtrainError as error:
            return replace(ending, reason=f"{ending.reason}; not all is home: {in_a_line(error)}")

    def _decided(self) -> Ending | None:
        """The ending of a run whose results are home: only its machines are left."""
        return Ending.read(self.paths) if self._standing().home else None

    def _live(self) -> Ending:
        """Until the run has ended for good, over as many machines as it takes."""
        while True:
            try:
                return self._one_set_of_machines()
            except Unfit as error:
                assert self.rented is not None, "machines that were tried were connected to"
                self._give_back([self.rented.node(number) for number in error.numbers], error)
            except Unbootable as error:
                self._give_back(error.nodes, error)
            except Taken as error:
                self._after_taken(str(error))

    def _one_set_of_machines(self) -> Ending:
        known = Ending.read(self.paths)
        if known is not None:
            return self._final(known)
        if not self._is_wanted():
            return self._stopped_there()
        rented = self._connect(self._booted(self._complete()))
        self.tell.say("booting", "waiting for SSH")
        rented.wait_for_ssh(self._is_wanted, lambda words: self.tell.say("booting", words))
        if not self._is_wanted():
            return self._stopped_there()
        self._arm(rented)
        self.tell.say("preparing", "making dtrain's environment on the machine")
        rented.prepare()
        self.tell.run_sent(True)
        self.tell.say("preparing", "sending the run, trying the machine out")
        rented.start()
        rented.watch_over(self.meter.seconds_to_stop(), self.meter.words_there())
        return self._watch(rented)

    def _connect(self, instances: dict[int, Instance]) -> RunThere:
        if self.rented is not None:
            self.rented.close()
        self.rented = RunThere(self.book, self.options, self.paths, self.keys, instances)
        return self.rented

    def _stopped_there(self) -> Ending:
        """Nobody wants it any more: what lives on a machine is told to save, for as long as the limit allows."""
        request = self._stop_request()
        there = self._booted(self._there())
        while there and self.tell.progress.run_sent and not self.meter.is_over():
            self.tell.say("training", f"stopping: {self._stop_words()}")
            rented = self._connect(there)
            if self._told(rented, request or StopRequest(False)):
                rented.far.status()
                break
            time.sleep(self.options.poll_seconds)
        ending = Ending.read(self.paths) or interrupted(self.paths, self._stop_words())
        return replace(ending, reason=request.beside(ending.reason)) if request is not None else ending

    def _arm(self, rented: RunThere) -> None:
        one = next(iter(rented.instances.values()))
        arm_watchdogs(rented, self.market.providers[one.provider], self.meter.remaining_seconds)

    # --- machines ---

    def _complete(self) -> dict[int, Instance]:
        """A machine for each node: those that are there, and new ones."""
        there = self._there(may_order=True)
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

    def _booted(self, machines: dict[int, Instance]) -> dict[int, Instance]:
        ready = self.machines.wait_for_addresses(
            machines, self._is_wanted, lambda words: self.tell.say("booting", words)
        )
        missing = sorted(set(machines) - set(ready))
        if missing and self._is_wanted():
            raise Unbootable("the provider shows no running machine with an address in time", missing)
        self.tell.show(ready)
        return ready

    def _give_back(self, nodes: Sequence[int], error: LauncherRefused) -> None:
        """Bad hosts go, and their offer comes last from now on."""
        there = self._there()
        bad = [there[node] for node in nodes if node in there]
        self.machines.give_back(bad, f"{GIVEN_BACK}: {error.message}")
        for instance in bad:
            self.choice.note_bad(instance)
        tried = [one for one in self._standing().of_this_life if one.why.startswith(GIVEN_BACK)]
        if len(tried) >= BAD_HOSTS:
            raise LauncherRefused(f"{len(tried)} machines were given back, the last: {error.message}")
        self.tell.run_sent(False)
        self.tell.say("choosing", f"given back: {error.message}")

    def _after_taken(self, why: str) -> None:
        """What can be saved comes home; the machine goes; the next one goes on from the last checkpoint."""
        if self.rented is not None:
            self.home.what_comes(self.rented)
            self.rented.close()
        going = [*self._there().values(), *self._asked(self._leaving)]
        self._asked(lambda: self.machines.give_back(going, f"{TAKEN}: {why}"))
        put_aside(self.paths)
        self.tell.run_sent(False)
        step = last_whole_checkpoint(self.paths) or 0
        self.tell.say("choosing", f"{why}; going on after step {step} on another machine")

    def _leaving(self) -> list[Instance]:
        """Machines that stop or were announced to: still listed, not ours to use."""
        names = {one.name for one in self._standing().may_exist if one.state == "created"}
        listed = teardown.existing(self.market, self.book.run_id)
        return [one for one in listed if one.name in names and (one.preempted or one.state in ("stopping", "stopped"))]

    # --- the run ---

    def _watch(self, rented: RunThere) -> Ending:
        """Follow it until it ends; pass a wish to stop on, hold the limits, notice a machine that was taken."""
        asked, told_to_stop = time.monotonic(), False
        while True:
            request = self._stop_request()
            if request is not None and not told_to_stop:
                self.tell.say("training", f"stopping: {request.why}")
                told_to_stop = self._told(rented, request)
            status = rented.far.status()
            self.tell.say("training", status.reason)
            ending = Ending.read(self.paths)
            if ending is not None:
                return self._final(ending)
            if self.options.spot:
                self.home.new_checkpoint(rented)
            if time.monotonic() - asked > ASK_PROVIDER_SECONDS or status.state == "lost":
                asked = time.monotonic()
                self._refuse_taken(rented)
                if status.state == "lost":
                    return Ending.now(self.paths, 1, f"lost: {status.reason}")
            time.sleep(self.options.poll_seconds)

    def _told(self, rented: RunThere, request: StopRequest) -> bool:
        try:
            rented.far.stop(request.at_once)
        except Unreachable:
            return False
        return True

    def _refuse_taken(self, rented: RunThere) -> None:
        try:
            there = self.machines.there()
        except ProviderError as error:  # unreachable is not gone
            self.tell.say("training", f"not asked whether the machine is still ours: {error.message}")
            return
        gone = [one.name for node, one in rented.instances.items() if node not in there]
        if gone:
            raise Taken(f"{', '.join(gone)} is gone, and nobody here asked for it")

    def _final(self, ending: Ending) -> Ending:
        """The same, or Taken: an interruption that nobody here asked for may be the machine's end, not the run's."""
        request = self._stop_request()
        if ending.code != INTERRUPTED or request is not None:
            return ending if request is None else replace(ending, reason=request.beside(ending.reason))
        there = self._booted(self._there())
        if len(there) < self.book.nodes:
            raise Taken(f"{TAKEN} at step {ending.step}")
        notice = (self.rented or self._connect(there)).notice()
        if notice is None:
            return ending
        if notice["taken"]:
            raise Taken(str(notice["why"]))
        return replace(ending, reason=f"{notice['why']}; {ending.reason}")

    def _stop_request(self) -> StopRequest | None:
        if self.meter.is_nearly_over() and StopRequest.read(self.paths) is None:
            StopRequest(False, self.meter.words()).write(self.paths)
        return StopRequest.read(self.paths)

    def _is_wanted(self) -> bool:
        return self._stop_request() is None

    def _stop_words(self) -> str:
        request = self._stop_request()
        return request.why if request is not None else "stopped"

    # --- home ---

    def _brought_home(self, ending: Ending) -> Ending:
        """Results first, always. Only the limit ends machines that hold the only copy, and that is said."""
        if self._standing().home:
            return ending
        ending.write(self.paths)
        there = self._there()
        while there and self.tell.progress.run_sent:
            home = self.home.bring(self.rented or self._connect(self._booted(there)), ending)
            if home is not None:
                ending = home
                break
            time.sleep(self.options.poll_seconds)
            there = self._there()
        self.ledger.home()
        return ending

    def _there(self, may_order: bool = False) -> dict[int, Instance]:
        """The machines that live."""
        return self._asked(lambda: self.machines.there(may_order))

    def _asked(self, question: Callable[[], T]) -> T:
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

    def _close(self, ending: Ending) -> None:
        """Destroy, look until it is gone, publish how it ended."""
        self.tell.say("destroying", "asking the provider to end the machines")
        try:
            teardown.destroy_all(
                self.market, self.book.run_id, ending.reason, self.options.poll_seconds,
                lambda words: self.tell.say("destroying", words),
            )  # fmt: skip
        except StillBilled as error:
            self.tell.say("over", error.message)
            self._publish(replace(ending, code=error.exit_code, reason=f"{ending.reason}; {error.message}"))
            self.unfinished = error
            return
        self.tell.show({})
        self.tell.say("over", f"{ending.reason}; {self.meter.cost_words(self._standing())}")
        self._publish(ending)
        self.ledger.ended(ending.reason)
        remove_keys(self.book.run_id)

    def _publish(self, ending: Ending) -> None:
        ending.write_to(self.paths.published)

    def _refused(self, error: DtrainError) -> None:
        """Nothing was rented: the client that asked tells, and takes the run back."""
        if self._standing().machines:  # ordered, and of an order that was never answered something may stand there
            teardown.tidy(self.market, self.book.run_id)
        self.ledger.ended(f"refused: {error.message}")
        remove_keys(self.book.run_id)
        self.tell.refused(error)

    def _was_nothing_rented(self) -> bool:
        return all(one.state == "refused" for one in self._standing().of_this_life)

    # --- telling ---

    def _standing(self) -> Standing:
        standing = self.ledger.standing()
        assert standing is not None, "submit writes the ledger's first line before a keeper lives"
        return standing
