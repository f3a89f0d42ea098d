"""RunPod: pods over its GraphQL. Its own client pastes queries together from texts, which a start command breaks, and
brings a hundred packages."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from dtrain.cloud.cards import cards
from dtrain.cloud.launcher import CloudLauncher
from dtrain.cloud.provider import (
    Instance,
    Need,
    NoCapacity,
    NoSuchMachine,
    Offer,
    Order,
    OutcomeUnknown,
    ProviderError,
)

from .container import ABILITIES
from .rest import Rest
from .runpod_answer import GONE, console_of, instance_of, listed, offers_of, refusal, spend_refusal
from .runpod_options import API, NAME, key, options_of
from .runpod_request import ACCOUNT, CARDS, PATH, PODS, TERMINATE, asked, create_body, created_by, end_time


class Runpod:
    name = NAME
    abilities = ABILITIES

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = options_of(options or {})

    def offers(self, need: Need) -> Sequence[Offer]:
        if need.gpu == "cpu":
            raise API.error(NoSuchMachine, "RunPod's CPU pods cannot end themselves: dtrain rents its GPUs only")
        told = self._ask(asked(CARDS))
        return offers_of(told["gpuTypes"], need, self.options)

    def all_offers(self) -> Sequence[Offer]:
        """Every card of the catalogue that RunPod sells, by the card, in one request."""
        types = self._ask(asked(CARDS))["gpuTypes"]
        return [offer for gpu in cards() for offer in listed(types, gpu)]

    def requests(self, order: Order) -> Sequence[Mapping[str, Any]]:
        return [{"method": "POST", "path": PATH, "body": create_body(order)}]

    def create(self, order: Order) -> Instance:
        body = create_body(order, end_time(order, time.time()))
        try:
            pod = self._ask(body, changes=True).get(created_by(order))
        except NoCapacity as refused:
            raise self._spend_refusal(order) or refused from None
        if not pod:
            raise API.error(OutcomeUnknown, "RunPod took the order and named no pod")
        return _instance(order, pod)

    def find(self, run_id: str | None = None) -> Sequence[Instance]:
        pods = self._ask(asked(PODS))["myself"]["pods"] or []
        found = [instance for pod in pods if (instance := instance_of(pod)) is not None]
        return [one for one in found if one.state != "gone" and run_id in (None, one.run_id)]

    def destroy(self, instance: Instance) -> None:
        try:
            self._ask(asked(TERMINATE, {"podId": instance.id}), changes=True)
        except ProviderError as refused:
            if not any(words in refused.message.lower() for words in GONE):
                raise

    @cached_property
    def _rest(self) -> Rest:
        return Rest(API, key())

    def _ask(self, body: Mapping[str, Any], changes: bool = False) -> dict[str, Any]:
        status, told = self._rest.ask("POST", PATH, body, changes=changes)
        refused = refusal(status, told)
        if refused is not None:
            raise refused
        return told.get("data") or {}

    def _spend_refusal(self, order: Order) -> ProviderError | None:
        try:
            return spend_refusal(self._ask(asked(ACCOUNT)).get("myself"), order.offer.usd_per_hour)
        except ProviderError:  # a key that may not read the account: then it stays what RunPod said
            return None


def _instance(order: Order, pod: Mapping[str, Any]) -> Instance:
    return Instance(
        provider=NAME, id=str(pod["id"]), name=order.name, run_id=order.run_id, node=order.node, attempt=order.attempt,
        state="starting", region=order.offer.region, machine=order.offer.machine, console=console_of(pod),
    )  # fmt: skip


class RunpodLauncher(CloudLauncher):
    name = NAME
    provider_class = Runpod
