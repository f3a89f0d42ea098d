"""Google Compute Engine: what is done in which order. What is said, is in gcp_request.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from dtrain.cloud.launcher import CloudLauncher
from dtrain.cloud.provider import (
    TAG,
    Abilities,
    Instance,
    Need,
    NoSuchMachine,
    Offer,
    Order,
    OutcomeUnknown,
    ProviderError,
)

from .gcp_answer import console, instance_of, operation_error
from .gcp_client import Compute
from .gcp_offers import PRICED_REGION, machines
from .gcp_options import NAME, OWN, endpoint, options_of
from .gcp_request import Call, calls, region_of, run_tag


class Gcp:
    name = NAME
    abilities = Abilities(
        idempotent_create=True, server_side_limit=True, shutdown_ends_billing=False, runs_user_data=True, spot=True,
        several_nodes=True,
    )  # fmt: skip

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = options_of(options or {})

    def offers(self, need: Need) -> Sequence[Offer]:
        """One for each zone that has the machine: what one cannot give the next one may."""
        choices = machines(need)
        found = [offer for choice in choices for offer in self._in_zones(choice, need)]
        if not found:
            raise NoSuchMachine(
                f"no zone of {', '.join(need.regions) or 'this project'} has {' or '.join(c.machine for c in choices)}",
                key="--on gcp", fix="name another region, or none",
            )  # fmt: skip
        return sorted(found, key=lambda offer: (offer.usd_per_hour, offer.region != PRICED_REGION))

    def requests(self, order: Order) -> Sequence[Mapping[str, Any]]:
        return [call.as_json() for call in self._calls(order)]

    def create(self, order: Order) -> Instance:
        """What stands beside the machine is there before the machine costs. Then it waits for the machine's operation:
        only there does Google say that a zone is full."""
        *beside, machine = self._calls(order)
        try:
            for operation, call in [(self._compute.insert(call), call) for call in beside]:
                if operation is not None and (refused := operation_error(self._compute.wait(operation, call))):
                    raise refused
            return self._instance(order, machine)
        except ProviderError as error:
            if error.retry_seconds is None:  # nobody will ask for it again: nothing of it may stay
                self._compute.delete_rules(f"{order.name}-")
                self._compute.delete_placements(run_tag(order.run_id))
            raise

    def _instance(self, order: Order, machine: Call) -> Instance:
        operation = self._compute.insert(machine)
        if operation is None:  # the order is older than Google remembers its request
            return self._named(order)
        if (refused := self._refusal(operation, machine)) is not None:
            raise refused
        return Instance(
            provider=NAME, id=str(operation.target_id), name=order.name, run_id=order.run_id, node=order.node,
            state="starting", region=region_of(machine.zone), zone=machine.zone, machine=order.offer.machine,
            attempt=order.attempt, console=console(machine.project, machine.zone, order.name),
        )  # fmt: skip

    def find(self, run_id: str | None = None) -> Sequence[Instance]:
        found = self._compute.instances(f"labels.{TAG}={run_id}" if run_id else f"labels.{TAG}:*")
        return [instance_of(instance, self._compute.project) for instance in found]

    def destroy(self, instance: Instance) -> None:
        self._compute.delete_instance(instance.zone, instance.name)

    def tidy(self, run_id: str) -> None:
        """The firewall rules and the placement of a run whose machines are gone."""
        self._compute.delete_rules(f"{run_tag(run_id)}-")
        self._compute.delete_placements(run_tag(run_id))

    @cached_property
    def _compute(self) -> Compute:
        return Compute(self.options.project_or_refuse(), endpoint())

    def _named(self, order: Order) -> Instance:
        found = [one for one in self.find(order.run_id) if one.name == order.name]
        if not found:
            raise OutcomeUnknown(f"{order.name} exists, and Google does not list it yet", key="--on gcp")
        return found[0]

    def _calls(self, order: Order) -> list[Call]:
        return calls(order, self.options)

    def _in_zones(self, choice: Offer, need: Need) -> Iterator[Offer]:
        for zone in self._compute.zones_with(choice.machine):
            if not need.regions or zone in need.regions or region_of(zone) in need.regions:
                yield replace(choice, region=region_of(zone), zone=zone)

    def _refusal(self, operation: Any, machine: Call) -> ProviderError | None:
        """None where Google cannot be asked: the machine may well be there, and `find` tells."""
        try:
            return operation_error(self._compute.wait(operation, machine))
        except ProviderError:
            return None


class GcpLauncher(CloudLauncher):
    name = NAME
    provider_class = Gcp
    own_options = OWN
