"""A small Vast of ours: offers, orders, instances page by page. Time is counted in looks, not in seconds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.cloud.served import Asked, Refused, Served

HOST = {
    "machine_id": 77, "host_id": 7, "cuda_max_good": 12.8, "cpu_ram": 193_000, "cpu_cores_effective": 32.0,
    "inet_up": 900.0, "inet_down": 900.0, "reliability": 0.995, "geolocation": "Sweden, SE", "verification": "verified",
    "rentable": True, "rented": False, "external": 0, "direct_port_count": 50, "disk_space": 900.0,
}  # fmt: skip
ASKS: tuple[dict[str, Any], ...] = (
    {"id": 11, "gpu_name": "H100 SXM", "num_gpus": 1, "gpu_ram": 81559, "dph_total": 2.40, "min_bid": 1.10,
     "machine_id": 78},
    {"id": 12, "gpu_name": "H100 SXM", "num_gpus": 1, "gpu_ram": 81559, "dph_total": 2.10, "min_bid": 1.05},
    {"id": 13, "gpu_name": "H100 SXM", "num_gpus": 8, "gpu_ram": 81559, "dph_total": 18.8, "min_bid": 9.0},
    {"id": 14, "gpu_name": "A100 SXM4", "num_gpus": 1, "gpu_ram": 40960, "dph_total": 0.70, "min_bid": 0.30},
    {"id": 15, "gpu_name": "A100 SXM4", "num_gpus": 1, "gpu_ram": 81920, "dph_total": 1.10, "min_bid": 0.50},
    {"id": 16, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564, "dph_total": 0.35, "min_bid": 0.15,
     "reliability": 0.60},
)  # fmt: skip
_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda has, wants: type(has)(wants) == has,  # Vast's own client sends numbers as text
    "gt": lambda has, wants: has > float(wants),
    "gte": lambda has, wants: has >= float(wants),
    "lte": lambda has, wants: has <= float(wants),
    "in": lambda has, wants: any(one in has for one in wants),
}
_TAKEN_FOR_GRANTED = ("verified",)
"""Filters on what no offer of ours lacks."""


@dataclass
class VastServer(Served):
    key: str
    instances: dict[int, dict[str, Any]] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    """Asks that somebody else took."""
    credit: float = 20.0
    looks_until_running: int = 1
    looks_until_address: int = 2
    address_of: Callable[[str], tuple[str, int]] = lambda label: ("203.0.113.8", 41022)
    on_create: Callable[[dict[str, Any]], None] = lambda row: None
    on_destroy: Callable[[dict[str, Any]], None] = lambda row: None

    def __post_init__(self) -> None:
        super().__init__()
        self.made = 9000

    def forget_everything(self) -> None:
        super().forget_everything()
        self.instances.clear()
        self.taken.clear()

    def name_of(self, asked: Asked) -> str:
        return f"{asked.method} {asked.path.split('/')[3]}"

    def answer(self, asked: Asked) -> Any:
        scoped = asked.headers.get("Authorization") == "Bearer scoped-to-the-instance"
        if asked.headers.get("Authorization") != f"Bearer {self.key}" and not scoped:
            raise Refused(401, {"success": False, "error": "auth_error", "msg": "Invalid user key"})
        routes: tuple[tuple[str, str, Callable[..., Any]], ...] = (
            ("POST", r"/api/v0/bundles/", self._search),
            ("PUT", r"/api/v0/asks/(\d+)/", self._rent),
            ("GET", r"/api/v1/instances/", self._list),
            ("DELETE", r"/api/v0/instances/(\d+)/", self._destroy),
        )
        for method, path, work in routes:
            found = re.fullmatch(path, asked.path)
            if found and method == asked.method:
                return work(asked, *map(int, found.groups()))
        raise Refused(404, {"success": False, "error": "not_found", "msg": f"no route {asked.method} {asked.path}"})

    def _search(self, asked: Asked) -> dict[str, Any]:
        query = dict(asked.body)
        kind, order, limit = query.pop("type"), query.pop("order"), query.pop("limit", 1000)
        query.pop("allocated_storage")
        [(by, direction)] = order
        found = [{**HOST, **ask} for ask in ASKS if ask["id"] not in self.taken]
        found = [ask for ask in found if all(_passes(ask, name, tests) for name, tests in query.items())]
        found.sort(key=lambda ask: ask.get(by, 0), reverse=direction == "desc")
        return {"success": True, "offers": [{**ask, "is_bid": kind == "bid"} for ask in found[:limit]]}

    def _rent(self, asked: Asked, ask_id: int) -> dict[str, Any]:
        ask = next((one for one in ASKS if one["id"] == ask_id and ask_id not in self.taken), None)
        if ask is None:
            words = f"Instance type by id {ask_id} is not available."
            raise Refused(404, {"success": False, "error": "no_such_ask", "msg": words})
        if self.credit < ask["dph_total"]:
            words = "Your account lacks credit; see the billing page."
            raise Refused(400, {"success": False, "error": "insufficient_credit", "msg": words})
        price = asked.body.get("price")
        stopped = price is not None and price < ask["min_bid"]
        if stopped and asked.body["cancel_unavail"]:
            raise Refused(400, {"success": False, "error": "bid_too_low", "msg": "the bid is too low to start"})
        assert len(asked.body["onstart"]) <= 4048, "Vast cuts a longer one"
        self.made += 1
        row = self._row(ask, asked.body, "stopped" if stopped else "running")
        self.instances[self.made] = row
        self.taken.add(ask_id)
        self.on_create(row)
        return {"success": True, "new_contract": self.made}

    def _row(self, ask: dict[str, Any], body: dict[str, Any], intended: str) -> dict[str, Any]:
        return {
            **HOST, **ask, "id": self.made, "ask_id": ask["id"], "label": body["label"], "looks": 0,
            "image_uuid": body["image"], "onstart": body["onstart"], "actual_status": None,
            "extra_env": list(dict(body["env"] or {}).items()), "intended_status": intended, "cur_state": intended,
            "is_bid": body.get("price") is not None, "start_date": 1795473619.0, "status_msg": "", "ports": None,
            "public_ipaddr": None, "ssh_host": None, "ssh_port": None,
        }  # fmt: skip

    def _list(self, asked: Asked) -> dict[str, Any]:
        query = {key: json.loads(value) for key, value in asked.query.items() if key != "after_token"}
        assert query["order_by"] == [{"col": "id", "dir": "asc"}], query
        after = int(asked.query.get("after_token", 0))
        for row in self.instances.values():
            self._look_at(row)
        rows = [row for number, row in sorted(self.instances.items()) if number > after]
        page = rows[: query["limit"]]
        more = len(rows) > len(page)
        return {"success": True, "instances": page, "next_token": str(page[-1]["id"]) if more else None}

    def _look_at(self, row: dict[str, Any]) -> None:
        row["looks"] += 1
        if row["intended_status"] == "running" and row["looks"] > self.looks_until_running:
            row["actual_status"] = row["actual_status"] or "running"
        if row["actual_status"] == "running" and row["looks"] > self.looks_until_address:
            address, port = self.address_of(row["label"])
            row["public_ipaddr"] = address
            row["ports"] = {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(port)}]}

    def _destroy(self, asked: Asked, number: int) -> dict[str, Any]:
        if number not in self.instances:
            words = f"No such instance {number}."
            raise Refused(404, {"success": False, "error": "no_such_instance", "msg": words})
        row = self.instances.pop(number)
        self.taken.discard(row["ask_id"])  # on offer again
        self.on_destroy(row)
        return {"success": True}


def _passes(ask: dict[str, Any], name: str, tests: dict[str, Any]) -> bool:
    if name in _TAKEN_FOR_GRANTED:
        return True
    has = bool(ask[name]) if name == "external" else ask[name]
    return all(_TESTS[test](has, wants) for test, wants in tests.items())
