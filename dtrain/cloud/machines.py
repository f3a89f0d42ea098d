"""The machines of a run, one for each node: those that exist are taken over, those that lack are created."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dtrain.cloud.keys import RunKeys
from dtrain.cloud.ledger import Rented
from dtrain.cloud.market import Market
from dtrain.cloud.options import CloudOptions
from dtrain.cloud.provider import Instance, Offer, Order
from dtrain.cloud.user_data import user_data

ALIVE = ("starting", "running")


@dataclass(frozen=True)
class Terms:
    """What every order of one run has in common."""

    run_id: str
    nodes: int
    options: CloudOptions
    keys: RunKeys | None
    """None: for a dry run."""
    client_address: str
    launcher: str
    """Whose options these are: with --anywhere another provider's machine gets those that all of them understand."""


class Machines:
    """Of one run, by node."""

    def __init__(self, market: Market, terms: Terms) -> None:
        self.market = market
        self.terms = terms

    def there(self, may_order: bool = True) -> dict[int, Instance]:
        """Node → machine, of those that live and were not given back. An unanswered create is settled on the way: by
        the same order again only where `may_order`."""
        standing = self.market.ledger.standing()
        found: dict[int, Instance] = {}
        for one in standing.may_exist if standing else ():
            instance = self._taken_over(one, may_order)
            if instance is not None:
                found[one.node] = instance
        return found

    def _taken_over(self, one: Rented, may_order: bool) -> Instance | None:
        if one.state == "intended":
            return self._settled(one, may_order)
        if one.state == "destroying":
            return None
        listed = self.market.find(one.provider, self.terms.run_id)
        known = [*listed, *self.market.unlisted({it.name for it in listed})]
        instance = next((it for it in known if it.name == one.name), None)
        if instance is None:
            self.market.ledger.gone(one.name)
            return None
        return instance if instance.state in ALIVE and not instance.preempted else None

    def _settled(self, one: Rented, may_order: bool) -> Instance | None:
        """A create whose answer nobody heard: where the provider knows its token, the same order gives its machine."""
        if may_order and self.market.provider_of(one).abilities.idempotent_create:
            return self.market.create_again(self._order_again(one))
        found = self.market.wait_for(one.provider, self.terms.run_id, one.name, one.asked)
        if found is None:
            self.market.ledger.refused(one.name, "the order was never answered, and no such machine appeared")
        else:
            self.market.ledger.created(found)
        return found

    def _order_again(self, one: Rented) -> Order:
        """To the letter: a provider refuses a token that comes with another order."""
        terms = replace(self.terms, client_address=one.order["client_address"])
        return order_of(terms, one.node, one.attempt, Offer(**one.order["offer"]), one.order["max_seconds"])

    def create(self, node: int, offer: Offer, max_seconds: float) -> Instance:
        standing = self.market.ledger.standing()
        attempt = 1 + (standing.attempts(node) if standing else 0)
        return self.market.create(order_of(self.terms, node, attempt, offer, max_seconds))

    def wait_for_addresses(
        self, machines: dict[int, Instance], is_wanted: Callable[[], bool], say: Callable[[str], None]
    ) -> dict[int, Instance]:
        """The same once each runs and has an address; without those that did not get that far in time."""
        options = self.terms.options
        deadline = time.monotonic() + options.boot_seconds
        while True:
            known = self._listed(machines)
            waiting = [one for one in known.values() if one.state == "starting" or one.address is None]
            lost = set(machines) - set(known)
            if not waiting or lost or not is_wanted() or time.monotonic() > deadline:
                return {node: one for node, one in known.items() if one.state == "running" and one.address}
            say("booting " + ", ".join(f"{one.machine} {one.id} in {one.region}" for one in waiting))
            time.sleep(options.poll_seconds)

    def _listed(self, machines: dict[int, Instance]) -> dict[int, Instance]:
        listed = [
            one
            for provider in sorted({one.provider for one in machines.values()})
            for one in self.market.find(provider, self.terms.run_id)
        ]
        listed += self.market.unlisted({one.name for one in listed})
        by_name = {one.name: one for one in listed if one.state in ALIVE and not one.preempted}
        return {node: by_name[one.name] for node, one in machines.items() if one.name in by_name}

    def give_back(self, instances: Sequence[Instance], why: str) -> None:
        for instance in instances:
            self.market.destroy(instance, why)


def order_of(terms: Terms, node: int, attempt: int, offer: Offer, max_seconds: float) -> Order:
    """Pure: what is ordered. Without keys, as a dry run shows it."""
    keys, options = terms.keys, terms.options
    is_own = offer.provider == terms.launcher
    return Order(
        run_id=terms.run_id, node=node, attempt=attempt, offer=offer,
        user_data=user_data(terms.run_id, max_seconds, keys),
        public_key=keys.login_public if keys else "PUBLIC_KEY", client_address=terms.client_address,
        max_seconds=max_seconds, disk_gib=options.disk_gib, image=options.image if is_own else None, nodes=terms.nodes,
        options=options.own if is_own else {},
    )  # fmt: skip
