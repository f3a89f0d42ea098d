"""What a keeper tells of its run while it goes: `rental.json`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from dtrain.cloud.ledger import Standing
from dtrain.cloud.order_book import OrderBook
from dtrain.cloud.progress import Progress, Stage
from dtrain.cloud.provider import Instance
from dtrain.errors import DtrainError
from dtrain.paths import RunPaths


class Telling:
    """Of one life of a run; what an earlier keeper of it told is gone on with."""

    def __init__(self, paths: RunPaths, book: OrderBook, standing: Callable[[], Standing]) -> None:
        self.paths = paths
        self.book = book
        self.standing = standing
        known = Progress.read(paths)
        life = standing().life
        self.progress = known if known is not None and known.life == life else Progress.fresh(book.run_id, life)

    def say(self, stage: Stage, words: str) -> None:
        self.progress = self.progress.at(stage, words, self.standing().usd(time.time()))
        self.progress.write(self.paths)

    def show(self, machines: Mapping[int, Instance]) -> None:
        """The machines that exist, from the next `say` on."""
        told = [
            {"name": one.name, "id": one.id, "provider": one.provider, "region": one.region, "machine": one.machine,
             "address": one.address, "port": one.port, "console": one.console}
            for one in machines.values()
        ]  # fmt: skip
        rate = sum(one.usd_per_hour for one in self.standing().may_exist)
        estimated = rate * self.book.estimated_hours if rate else self.progress.estimated_usd
        most = float(self.book.options.get("max_cost") or math.inf)
        limit = min(rate * self.book.limit_hours, most) if rate else self.progress.limit_usd
        self.progress = replace(
            self.progress, machines=told, usd_per_hour=rate, estimated_usd=estimated, limit_usd=limit
        )

    def run_sent(self, is_there: bool) -> None:
        """Whether the machines that exist hold anything of the run."""
        self.progress = replace(self.progress, run_sent=is_there)

    def refused(self, error: DtrainError) -> None:
        self.progress = replace(self.progress, refused=error.as_json())
        self.say("over", error.message)
