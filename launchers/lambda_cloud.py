"""Lambda Cloud, over its HTTP API. It has no idempotency key, no limit of its own and no spot machines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from dtrain.cloud.launcher import CloudLauncher
from dtrain.cloud.provider import (
    TAG,
    Abilities,
    Instance,
    InstanceState,
    Need,
    NoCapacity,
    NoSuchMachine,
    Offer,
    Order,
    ProviderError,
)

from . import lambda_firewall as firewall
from .lambda_client import LAUNCH, LambdaApi
from .lambda_options import API, KEY_VARIABLE, NAME, OWN, key_or_refuse, options_of
from .lambda_pace import Pace

CONSOLE = "https://cloud.lambda.ai/instances"
STATES: dict[str, InstanceState] = {
    "booting": "starting", "active": "running", "unhealthy": "running", "terminating": "stopping",
    "preempted": "stopped", "terminated": "gone",
}  # fmt: skip
"""InstanceStatus of the API description 1.8.3. An unhealthy machine may still train: only its `reason` tells."""
_CARDS = (
    (r"^GH200", "gh200"), (r"^B200", "b200"), (r"^H200", "h200"), (r"^H100 .*PCIe", "h100-pcie"), (r"^H100", "h100"),
    (r"^A100 \(80 GB.*PCIe", "a100-pcie"), (r"^A100 \(80 GB", "a100-80gb"), (r"^A100 \(40 GB", "a100-40gb"),
    (r"A6000", "a6000"), (r"V100 \(32 GB", "v100-32gb"), (r"V100", "v100-16gb"),
)  # fmt: skip
"""Lambda's `gpu_description`, such as `H100 (80 GB SXM5)` → the catalogue's name."""
IMAGE = "lambda-stack-24-04"
"""Ubuntu 24.04, whose Python is 3.12, with NVIDIA's driver: a family of GET /api/v1/images."""
KEYS = "/api/v1/ssh-keys"
TYPES = "/api/v1/instance-types"
TERMINATE = "/api/v1/instance-operations/terminate"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = re.compile(r"dtrain-(?P<run>.+)-n(?P<node>\d+)-a(?P<attempt>\d+)")


class Lambda:
    name = NAME
    abilities = Abilities(
        idempotent_create=False, server_side_limit=False, shutdown_ends_billing=False, runs_user_data=True, spot=False,
        several_nodes=False, watchdog_key=KEY_VARIABLE,
    )  # fmt: skip

    def __init__(self, options: Mapping[str, Any] | None = None, pace: Pace | None = None) -> None:
        self.options = options_of(options or {})
        self._pace = pace

    def offers(self, need: Need) -> Sequence[Offer]:
        """One for each region that Lambda says has room, at the live price. That is advice: only a launch knows."""
        if need.spot:
            raise API.error(NoSuchMachine, "Lambda rents no spot machines: launch without spot")
        if need.nodes > 1:
            raise API.error(NoSuchMachine, "Lambda rents no machines that are joined by a network: take one node")
        types = _fitting(self._api.ask("GET", TYPES), need)
        found = [offer for told in types for offer in _offers(told, need)]
        wanted = [offer for offer in found if not need.regions or offer.region in need.regions]
        if not wanted:
            raise API.error(NoCapacity, _no_room(types, [offer.region for offer in found], need))
        return sorted(wanted, key=lambda offer: (offer.usd_per_hour, offer.region))

    def all_offers(self) -> Sequence[Offer]:
        """Every type with a card of the catalogue, with or without room now."""
        kinds = [told["instance_type"] for told in self._api.ask("GET", TYPES).values()]
        return [_offer(kind, "", card) for kind in kinds if (card := _card(kind)) is not None]

    def requests(self, order: Order) -> Sequence[Mapping[str, Any]]:
        """The ruleset's number is Lambda's to give: a word stands for it."""
        register = {"method": "POST", "path": KEYS, "body": _key(order)}
        if not firewall.is_had(order):
            return [register, {"method": "POST", "path": LAUNCH, "body": _launch(order)}]
        guarded = firewall.behind(_launch(order), firewall.RULESET_ID)
        guard = {"method": "POST", "path": firewall.RULESETS, "body": firewall.ruleset(order)}
        return [register, guard, {"method": "POST", "path": LAUNCH, "body": guarded}]

    def create(self, order: Order) -> Instance:
        """The run's key and its firewall are there first: a launch names them. A run of which nothing came about leaves
        neither."""
        try:
            if not self._keys(order.run_id):
                self._api.ask("POST", KEYS, _key(order))
            launch = _launch(order)
            if firewall.is_had(order):
                launch = firewall.behind(launch, self._ruleset(order))
            (number,) = self._api.ask("POST", LAUNCH, launch)["instance_ids"]
        except ProviderError as refused:
            if refused.retry_seconds is None:  # nobody will ask for it again
                with suppress(ProviderError):
                    self.tidy(order.run_id)
            raise
        return Instance(
            provider=NAME, id=number, name=order.name, run_id=order.run_id, node=order.node, state="starting",
            region=order.offer.region, machine=order.offer.machine, attempt=order.attempt, console=CONSOLE,
        )  # fmt: skip

    def find(self, run_id: str | None = None) -> Sequence[Instance]:
        found = (instance_of(told) for told in self._api.ask("GET", "/api/v1/instances"))
        ours = [one for one in found if one is not None and one.state != "gone"]
        return [one for one in ours if run_id is None or one.run_id == run_id]

    def destroy(self, instance: Instance) -> None:
        with suppress(NoSuchMachine):  # what Lambda says of one that is gone
            self._api.ask("POST", TERMINATE, self.ending(instance)["body"])

    def tidy(self, run_id: str) -> None:
        """The SSH key of a run, which machines that are up do not need any more, and its firewall once none is."""
        for listed in (self._keys, self._rulesets):
            for number, path in listed(run_id).items():
                try:
                    self._api.ask("DELETE", path)
                except ProviderError:
                    if number in listed(run_id):  # else another process was faster
                        raise

    def ending(self, instance: Instance) -> Mapping[str, Any]:
        """The request that ends a machine, for a watchdog on it. The key stands in it by name."""
        return {
            "method": "POST", "url": f"{API.endpoint()}{TERMINATE}",
            "headers": {"Authorization": f"Bearer ${KEY_VARIABLE}"}, "body": {"instance_ids": [instance.id]},
        }  # fmt: skip

    @cached_property
    def _api(self) -> LambdaApi:
        return LambdaApi(key_or_refuse(), self.options, self._pace)

    def _keys(self, run_id: str) -> dict[str, str]:
        """Number and path of the keys that are registered for a run."""
        keys = self._api.ask("GET", KEYS)
        return {key["id"]: f"{KEYS}/{key['id']}" for key in keys if key["name"] == _key_name(run_id)}

    def _rulesets(self, run_id: str) -> dict[str, str]:
        """Number and path of a run's rulesets, one in each region where it had a machine."""
        ours = (one for one in self._api.ask("GET", firewall.RULESETS) if firewall.is_of(one, run_id))
        return {one["id"]: f"{firewall.RULESETS}/{one['id']}" for one in ours}

    def _ruleset(self, order: Order) -> str:
        """The number of the one that guards the run's machines in the order's region; made once."""
        wanted = firewall.ruleset(order)
        known = [one for one in self._api.ask("GET", firewall.RULESETS) if one["name"] == wanted["name"]]
        return str((known or [self._api.ask("POST", firewall.RULESETS, wanted)])[0]["id"])


# --- what is sent --------------------------------------------------------------------------------------------------


def _key_name(run_id: str) -> str:
    return f"dtrain-{run_id}"


def _key(order: Order) -> dict[str, Any]:
    """One for all machines of a run, as they have one key."""
    return {"name": _key_name(order.run_id), "public_key": order.public_key.strip()}


def _launch(order: Order) -> dict[str, Any]:
    """Without an image Lambda takes its newest; the one here is pinned."""
    return {
        "region_name": order.offer.region,
        "instance_type_name": order.offer.machine,
        "ssh_key_names": [_key_name(order.run_id)],
        "name": order.name,
        "image": _image(order.image or IMAGE),
        "user_data": firewall.closed_to_others(order.user_data, order.client_address),
        "tags": [{"key": key, "value": value} for key, value in order.tags.items()],
    }


def _image(said: str) -> dict[str, str]:
    """An image's id is a UUID; everything else is a family."""
    return {"id" if _UUID.fullmatch(said) else "family": said}


# --- what is answered ----------------------------------------------------------------------------------------------


def _fitting(types: Mapping[str, Any], need: Need) -> list[Mapping[str, Any]]:
    """The machines with the card and the fewest of them that are enough. NoSuchMachine names what there is."""
    enough = [told for told in types.values() if _is_enough(told["instance_type"], need)]
    if not enough:
        cards = sorted({card for told in types.values() if (card := _card(told["instance_type"])) is not None})
        words = f"Lambda has no machine with {need.gpus} × {need.gpu}; its cards: {', '.join(cards)}"
        raise API.error(NoSuchMachine, words)
    fewest = min(told["instance_type"]["specs"]["gpus"] for told in enough)
    return [told for told in enough if told["instance_type"]["specs"]["gpus"] == fewest]


def _is_enough(kind: Mapping[str, Any], need: Need) -> bool:
    return _card(kind) == need.gpu and (need.gpu == "cpu" or kind["specs"]["gpus"] >= need.gpus)


def _card(kind: Mapping[str, Any]) -> str | None:
    if kind["specs"]["gpus"] == 0:
        return "cpu"
    return next((name for pattern, name in _CARDS if re.search(pattern, kind["gpu_description"])), None)


def _offers(told: Mapping[str, Any], need: Need) -> list[Offer]:
    regions = [region["name"] for region in told["regions_with_capacity_available"]]
    return [_offer(told["instance_type"], region, need.gpu) for region in regions]


def _offer(kind: Mapping[str, Any], region: str, card: str) -> Offer:
    return Offer(
        NAME, region, kind["name"], card, kind["specs"]["gpus"], kind["price_cents_per_hour"] / 100,
        priced_on="live", price_source="Lambda's API", capacity=True if region else None,
    )  # fmt: skip


def _no_room(types: Sequence[Mapping[str, Any]], regions: Sequence[str], need: Need) -> str:
    names = ", ".join(told["instance_type"]["name"] for told in types)
    where = f"in {', '.join(need.regions)}" if need.regions else "anywhere"
    return f"Lambda says there is no room for {names} {where} now" + (
        f"; there is in {', '.join(regions)}" if regions else ""
    )


def instance_of(told: Mapping[str, Any]) -> Instance | None:
    """None: a machine that is not ours. The tag says so, and where it is missing the name."""
    tags = {tag["key"]: tag["value"] for tag in told.get("tags", [])}
    named = _NAME.fullmatch(told.get("name", ""))
    if TAG not in tags and named is None:
        return None
    status = told["status"]
    return Instance(
        provider=NAME, id=told["id"], name=told.get("name", ""),
        run_id=tags.get(TAG) or (named["run"] if named else ""),
        node=int(named["node"]) if named else 0, attempt=int(named["attempt"]) if named else 1,
        state=STATES.get(status, "starting"),
        reason="" if status in ("booting", "active") else f"Lambda says {status}",
        region=told["region"]["name"], machine=told["instance_type"]["name"], address=told.get("ip"),
        private_address=told.get("private_ip"), preempted=status == "preempted", console=CONSOLE,
    )  # fmt: skip


class LambdaLauncher(CloudLauncher):
    name = NAME
    provider_class = Lambda
    own_options = OWN
