"""One life of a rented run, driven to its end: choose, create, boot, prepare, train, fetch, destroy.

Every step may be repeated: what exists is read from the ledger and asked of the provider, so a keeper that was killed
anywhere is replaced by another that goes on. A machine that is not fit is given back and another taken; one that the
provider took is replaced, and the run goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

from dtrain.cloud import teardown
from dtrain.cloud.arming import arm_watchdogs
from dtrain.cloud.fleet import ASK_PROVIDER_SECONDS, TAKEN, Fleet
from dtrain.cloud.held import HeldPaths
from dtrain.cloud.homeward import Homeward
from dtrain.cloud.keys import remove_keys
from dtrain.cloud.market import Market
from dtrain.cloud.meter import Meter
from dtrain.cloud.mishaps import Helpless, Taken, as_told, ending_of, in_a_line
from dtrain.cloud.options import CloudOptions
from dtrain.cloud.order_book import OrderBook
from dtrain.cloud.provider import ProviderError
from dtrain.cloud.run_there import RunThere, Unbootable, last_whole_checkpoint
from dtrain.cloud.stop_request import StopRequest, Wishes
from dtrain.cloud.telling import Telling
from dtrain.errors import DtrainError, StillBilled, Unreachable
from dtrain.launch.ending import INTERRUPTED, Ending, interrupted, put_aside
from dtrain.launch.far import Unfit
from dtrain.paths import RunPaths


class Rental:
    def __init__(self, paths: RunPaths, book: OrderBook, options: CloudOptions, market: Market) -> None:
        self.paths = HeldPaths(paths.output)
        self.book = book
        self.options = options
        self.market = market
        self.ledger = market.ledger
        self.meter = Meter(book, options, self.ledger.begun_standing())
        self.wishes = Wishes(self.paths, self.meter)
        self.tell = Telling(paths, book, self.ledger.begun_standing)
        self.fleet = Fleet(book, options, market, self.paths, self.meter, self.tell, self.wishes)
        self.home = Homeward(options, self.meter, self.tell)
        self.unfinished: DtrainError | None = None
        """Why the run is not over though this keeper has done what it can."""

    # --- the road ---

    def drive(self) -> None:
        """To the end: exit.json is published, or the refusal is told, and the ledger is closed."""
        if self.ledger.begun_standing().ended:
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
            self.fleet.close()
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
        return Ending.read(self.paths) if self.ledger.begun_standing().home else None

    def _live(self) -> Ending:
        """Until the run has ended for good, over as many machines as it takes."""
        fleet = self.fleet
        while True:
            try:
                return self._one_set_of_machines()
            except Unfit as error:
                assert fleet.rented is not None, "machines that were tried were connected to"
                fleet.give_back([fleet.rented.node(number) for number in error.numbers], error)
            except Unbootable as error:
                fleet.give_back(error.nodes, error)
            except Taken as error:
                self._after_taken(str(error))

    def _one_set_of_machines(self) -> Ending:
        fleet, known = self.fleet, Ending.read(self.paths)
        if known is not None:
            return self._final(known)
        if not self.wishes.is_wanted():
            return self._stopped_there()
        rented = fleet.connect(fleet.booted(fleet.complete()))
        self.tell.say("booting", "waiting for SSH")
        rented.wait_for_ssh(self.wishes.is_wanted, lambda words: self.tell.say("booting", words))
        if not self.wishes.is_wanted():
            return self._stopped_there()
        self._arm(rented)
        self.tell.say("preparing", "making dtrain's environment on the machine")
        rented.prepare()
        self.tell.run_sent(True)
        self.tell.say("preparing", "sending the run, trying the machine out")
        rented.start()
        rented.watch_over(self.meter.seconds_to_stop(), self.meter.words_there())
        return self._watch(rented)

    def _arm(self, rented: RunThere) -> None:
        one = next(iter(rented.instances.values()))
        arm_watchdogs(rented, self.market.providers[one.provider], self.meter.remaining_seconds)

    def _stopped_there(self) -> Ending:
        """Nobody wants it any more: what lives on a machine is told to save, for as long as the limit allows."""
        request = self.wishes.request()
        there = self.fleet.booted(self.fleet.there())
        while there and self.tell.progress.run_sent and not self.meter.is_over():
            self.tell.say("training", f"stopping: {self.wishes.words()}")
            rented = self.fleet.connect(there)
            if self._told(rented, request or StopRequest(False)):
                rented.far.status()
                break
            time.sleep(self.options.poll_seconds)
        ending = Ending.read(self.paths) or interrupted(self.paths, self.wishes.words())
        return replace(ending, reason=request.beside(ending.reason)) if request is not None else ending

    def _after_taken(self, why: str) -> None:
        """What can be saved comes home; the machine goes; the next one goes on from the last checkpoint."""
        if self.fleet.rented is not None:
            self.home.what_comes(self.fleet.rented)
        self.fleet.let_go(why)
        put_aside(self.paths)
        step = last_whole_checkpoint(self.paths) or 0
        self.tell.say("choosing", f"{why}; going on after step {step} on another machine")

    # --- the run ---

    def _watch(self, rented: RunThere) -> Ending:
        """Follow it until it ends; pass a wish to stop on, hold the limits, notice a machine that was taken."""
        asked, told_to_stop = time.monotonic(), False
        while True:
            request = self.wishes.request()
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
                self.fleet.refuse_taken(rented)
                if status.state == "lost":
                    return Ending.now(self.paths, 1, f"lost: {status.reason}")
            time.sleep(self.options.poll_seconds)

    def _told(self, rented: RunThere, request: StopRequest) -> bool:
        try:
            rented.far.stop(request.at_once)
        except Unreachable:
            return False
        return True

    def _final(self, ending: Ending) -> Ending:
        """The same, or Taken: an interruption that nobody here asked for may be the machine's end, not the run's."""
        request = self.wishes.request()
        if ending.code != INTERRUPTED or request is not None:
            return ending if request is None else replace(ending, reason=request.beside(ending.reason))
        there = self.fleet.booted(self.fleet.there())
        if len(there) < self.book.nodes:
            raise Taken(f"{TAKEN} at step {ending.step}")
        notice = (self.fleet.rented or self.fleet.connect(there)).notice()
        if notice is None:
            return ending
        if notice["taken"]:
            raise Taken(str(notice["why"]))
        return replace(ending, reason=f"{notice['why']}; {ending.reason}")

    # --- home, and the end ---

    def _brought_home(self, ending: Ending) -> Ending:
        """Results first, always. Only the limit ends machines that hold the only copy, and that is said."""
        if self.ledger.begun_standing().home:
            return ending
        ending.write(self.paths)
        fleet = self.fleet
        there = fleet.there()
        while there and self.tell.progress.run_sent:
            home = self.home.bring(fleet.rented or fleet.connect(fleet.booted(there)), ending)
            if home is not None:
                ending = home
                break
            time.sleep(self.options.poll_seconds)
            there = fleet.there()
        self.ledger.home()
        return ending

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
        self.tell.say("over", f"{ending.reason}; {self.meter.cost_words(self.ledger.begun_standing())}")
        remove_keys(self.book.run_id)
        self._publish(ending)  # from here on the run is over for everybody
        self.ledger.ended(ending.reason)

    def _publish(self, ending: Ending) -> None:
        ending.write_to(self.paths.published)

    def _refused(self, error: DtrainError) -> None:
        """Nothing was rented: the client that asked tells, and takes the run back."""
        # ordered, and of an order that was never answered something may stand there
        if self.ledger.begun_standing().machines:
            teardown.tidy(self.market, self.book.run_id)
        self.ledger.ended(f"refused: {error.message}")
        remove_keys(self.book.run_id)
        self.tell.refused(error)

    def _was_nothing_rented(self) -> bool:
        """Of an order that was never answered the provider must tell; one that does not may have made a machine."""
        with contextlib.suppress(ProviderError):
            teardown.settle_unknown(self.market)
        return all(one.state == "refused" for one in self.ledger.begun_standing().of_this_life)
