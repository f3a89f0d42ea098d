"""The end of a run's machines: asked for, polled until the provider says that they are gone, survivors named."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial

from dtrain.cloud.ledger import Rented
from dtrain.cloud.market import Market, patiently
from dtrain.cloud.provider import CanTidy, Instance, ProviderError
from dtrain.errors import StillBilled

GONE_SECONDS = 900.0
"""A machine with eight GPUs may take minutes to go."""
TIDY_SECONDS = 30.0
"""A firewall may be held for a moment by a machine that is gone."""
ASK_AGAIN_SECONDS = 60.0
"""A machine that is still up after so long is asked to end once more."""


def destroy_all(market: Market, run_id: str, why: str, poll_seconds: float, say: Callable[[str], None]) -> None:
    """Every machine of the run, those that the ledger knows and those that only the provider does.

    StillBilled names what is left when the patience is over.
    """
    deadline, asked_again = time.monotonic() + GONE_SECONDS, 0.0
    while True:
        again = time.monotonic() >= asked_again
        asked_again = time.monotonic() + ASK_AGAIN_SECONDS if again else asked_again
        left: Sequence[Instance | Rented]
        try:
            left = _look(market, run_id, why if again else None)
            if not left:
                tidy(market, run_id)
                return
            words = ", ".join(f"{one.name} ({one.state})" for one in left)
        except ProviderError as error:  # who cannot ask does not know that it is gone
            left, words = _may_exist(market), error.message
            asked_again = 0.0
        if time.monotonic() > deadline:
            raise still_billed(left, words)
        say(f"waiting until the provider says gone: {words}")
        time.sleep(poll_seconds)


def _look(market: Market, run_id: str, why: str | None) -> list[Instance]:
    """What is there still; with `why` it is asked to end first."""
    settle_unknown(market)
    left = existing(market, run_id)
    if why is not None and left:
        for instance in left:
            market.destroy(instance, why)
        left = existing(market, run_id)
    note_gone(market, left)
    return left


def _may_exist(market: Market) -> list[Rented]:
    standing = market.ledger.standing()
    return standing.may_exist if standing else []


def tidy(market: Market, run_id: str) -> None:
    """What stood beside the machines costs nothing: what cannot be taken away is no reason to fail."""
    for provider in market.providers.values():
        if isinstance(provider, CanTidy):
            with contextlib.suppress(ProviderError):
                patiently(partial(provider.tidy, run_id), TIDY_SECONDS)


def existing(market: Market, run_id: str) -> list[Instance]:
    """What the providers say that there is of a run, and what they made so lately that they may not list it yet."""
    standing = market.ledger.standing()
    used = {one.provider for one in standing.machines.values()} if standing else set()
    asked = used & set(market.providers) or set(market.providers)  # a ledger without an order may not be the only one
    listed = [one for name in sorted(asked) for one in market.find(name, run_id)]
    return listed + market.unlisted({one.name for one in listed})


def settle_unknown(market: Market) -> None:
    """Each create of which no answer came: its machine has appeared by now, or there is none."""
    standing = market.ledger.standing()
    for one in standing.may_exist if standing else ():
        if one.state != "intended" or one.provider not in market.providers:
            continue
        found = market.wait_for(one.provider, market.ledger.run_id, one.name, one.asked)
        if found is not None:
            market.ledger.created(found)
        else:
            market.ledger.refused(one.name, "the order was never answered, and no such machine appeared")


def note_gone(market: Market, left: Sequence[Instance]) -> None:
    """The provider does not list it any more."""
    standing = market.ledger.standing()
    there = {one.name for one in left}
    for one in standing.may_exist if standing else ():
        if one.name not in there and one.provider in market.providers and one.state != "intended":
            market.ledger.gone(one.name)


def still_billed(left: Sequence[Instance | Rented], words: str) -> StillBilled:
    told = "; ".join(_survivor(one) for one in left) or f"perhaps: {words}"
    return StillBilled(
        f"still there, and still billed: {told}", fix="dtrain gc tries again; end it by hand in the console else"
    )


def _survivor(one: Instance | Rented) -> str:
    if isinstance(one, Rented):
        return f"{one.name} at {one.provider} in {one.region} ({one.state})"
    return f"{one.provider} {one.id} ({one.name}, {one.state}) in {one.region} {one.console}".rstrip()
