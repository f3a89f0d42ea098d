"""Vast.ai: machines of many hosts, over its HTTP API. Its own client repeats an order whose answer was lost, which
rents twice, and weighs 200 MB."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from dtrain.cloud.launcher import CloudLauncher
from dtrain.cloud.provider import Instance, Need, NoCapacity, NoSuchMachine, Offer, Order, ProviderError

from .container import ABILITIES
from .rest import Rest
from .vast_answer import created_id, instance_of, is_gone, median_of, offer_of, refusal
from .vast_options import API, CONSOLE, NAME, key, options_of
from .vast_request import CARDS, INSTANCES, PAGE, SEARCH, ask_path, create_body, instance_path, search_body


class Vast:
    name = NAME
    abilities = ABILITIES

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = options_of(options or {})

    def offers(self, need: Need) -> Sequence[Offer]:
        if need.gpu not in CARDS:
            raise API.error(NoSuchMachine, f"Vast has no {need.gpu}: it has {', '.join(CARDS)}")
        asks = self._ask("POST", SEARCH, search_body(need, self.options))["offers"]
        if not asks:
            raise API.error(NoCapacity, f"nobody on Vast offers {need.gpus} × {need.gpu} with these filters now")
        return sorted((offer_of(ask, need) for ask in asks), key=lambda offer: offer.usd_per_hour)

    def all_offers(self) -> Sequence[Offer]:
        """The median of what is asked for each card, singly: one search a card, as searches are counted."""
        searched = ((Need(gpu, 1), search_body(Need(gpu, 1), self.options)) for gpu in CARDS)
        found = ((need, self._ask("POST", SEARCH, body)["offers"]) for need, body in searched)
        return [median_of([offer_of(ask, need) for ask in asks]) for need, asks in found if asks]

    def requests(self, order: Order) -> Sequence[Mapping[str, Any]]:
        return [{"method": "PUT", "path": ask_path(order), "body": create_body(order)}]

    def create(self, order: Order) -> Instance:
        told = self._ask("PUT", ask_path(order), create_body(order), changes=True)
        return Instance(
            provider=NAME, id=created_id(told), name=order.name, run_id=order.run_id, node=order.node,
            attempt=order.attempt, state="starting", region=order.offer.region, zone=order.offer.zone,
            machine=order.offer.machine,
            console=f"{CONSOLE}/instances/", data=dict(order.offer.data),
        )  # fmt: skip

    def find(self, run_id: str | None = None) -> Sequence[Instance]:
        found = [instance for row in self._rows() if (instance := instance_of(row)) is not None]
        return [one for one in found if run_id in (None, one.run_id)]

    def destroy(self, instance: Instance) -> None:
        try:
            self._ask("DELETE", instance_path(instance.id), {}, changes=True)
        except ProviderError as refused:
            if not is_gone(refused):
                raise

    @cached_property
    def _rest(self) -> Rest:
        return Rest(API, key())

    def _ask(self, method: str, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
        status, told = self._rest.ask(method, path, body, **more)
        refused = refusal(status, told)
        if refused is not None:
            raise refused
        return told

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        """Every instance of the account, page by page."""
        query = {"select_filters": "{}", "order_by": json.dumps([{"col": "id", "dir": "asc"}]), "limit": str(PAGE)}
        while True:
            page = self._ask("GET", INSTANCES, query=query)
            yield from page.get("instances") or []
            if not page.get("next_token"):
                return
            query["after_token"] = str(page["next_token"])


class VastLauncher(CloudLauncher):
    name = NAME
    provider_class = Vast
