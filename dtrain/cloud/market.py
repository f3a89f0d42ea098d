"""Calls to a provider with patience: what may be repeated is, what may have happened is looked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dtrain.cloud.ledger import Ledger, Rented
from dtrain.cloud.provider import Instance, Order, OutcomeUnknown, Provider, ProviderDown, ProviderError
from dtrain.errors import LauncherRefused

T = TypeVar("T")
PATIENCE_SECONDS = 120.0
"""How long a provider that is down or throttles is asked again."""
SETTLE_SECONDS = 15.0
"""A machine that was just created may not be listed yet; one field report saw a second on AWS."""
CREATE_TRIES = 3
POLL_SECONDS = 1.0


def patiently(call: Callable[[], T], patience_seconds: float = PATIENCE_SECONDS) -> T:
    """Again after each error that says it may be repeated."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return call()
        except ProviderError as error:
            if error.retry_seconds is None or time.monotonic() + error.retry_seconds > deadline:
                raise
            time.sleep(error.retry_seconds)


@dataclass(frozen=True)
class Market:
    """The providers of one run, by name, and its ledger."""

    providers: Mapping[str, Provider]
    ledger: Ledger

    def create(self, order: Order) -> Instance:
        """One machine, intent first. An error other than OutcomeUnknown means that nothing was made."""
        self.ledger.intended(order, order.offer.provider)
        return self.create_again(order)

    def create_again(self, order: Order) -> Instance:
        """The intent stands in the ledger already: what may have been made is not made twice."""
        try:
            instance = self._created(order)
        except OutcomeUnknown:
            raise
        except ProviderError as error:
            self.ledger.refused(order.name, error.message)
            raise
        self.ledger.created(instance)
        return instance

    def _created(self, order: Order) -> Instance:
        provider = self.providers[order.offer.provider]
        for tried in range(CREATE_TRIES):
            try:
                return provider.create(order)
            except ProviderError as error:
                if error.retry_seconds is None or tried == CREATE_TRIES - 1:
                    raise
                unclear = isinstance(error, OutcomeUnknown | ProviderDown)
                if unclear and not provider.abilities.idempotent_create:
                    return self._appeared(order)
                time.sleep(error.retry_seconds)
        raise AssertionError("the last try returns or raises")

    def _appeared(self, order: Order) -> Instance:
        """No second create without a token: the first one's machine shows itself, or there is none."""
        found = self.wait_for(order.offer.provider, order.run_id, order.name)
        if found is not None:
            return found
        raise ProviderError(
            f"{order.offer.provider} gave no answer to the order of {order.name}, and no such machine appeared",
            fix="try again; dtrain gc looks once more",
        )

    def wait_for(self, provider: str, run_id: str, name: str, asked: float = 0.0) -> Instance | None:
        """The machine of that name; None once it should have appeared. `asked`: when it was ordered, if before."""
        already = max(0.0, time.time() - asked) if asked else 0.0
        deadline = time.monotonic() + max(0.0, SETTLE_SECONDS - already)
        while True:
            named = [one for one in self.find(provider, run_id) if one.name == name]
            if named or time.monotonic() > deadline:
                return named[0] if named else None
            time.sleep(POLL_SECONDS)

    def find(self, provider: str, run_id: str) -> Sequence[Instance]:
        """What the provider lists of a run; the ledger keeps what was seen."""
        found = patiently(lambda: self.providers[provider].find(run_id))
        standing = self.ledger.standing()
        unseen = {one.name for one in standing.may_exist if not one.listed} if standing else set()
        for name in sorted(unseen & {one.name for one in found}):
            self.ledger.listed(name)
        return found

    def destroy(self, instance: Instance, why: str) -> None:
        """Ask for its end; the ledger knows before the provider does."""
        self.ledger.destroying(instance.name, why)
        patiently(lambda: self.providers[instance.provider].destroy(instance))

    def unlisted(self, listed: Collection[str]) -> list[Instance]:
        """Machines that the provider made so lately that it need not list them yet: their absence says nothing."""
        standing = self.ledger.standing()
        return [
            one.instance
            for one in (standing.may_exist if standing else ())
            if one.instance is not None and one.name not in listed and one.provider in self.providers
            if not one.listed and 0 <= time.time() - one.made < SETTLE_SECONDS
        ]

    def provider_of(self, one: Rented) -> Provider:
        if one.provider not in self.providers:
            raise LauncherRefused(f"a machine of this run is at {one.provider}, whose launcher is not installed here")
        return self.providers[one.provider]
