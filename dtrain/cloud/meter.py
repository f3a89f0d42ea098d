"""How long a run may still cost money. Time that passes counts, not the clock: one that is set moves no limit."""

from __future__ import annotations

import math
import time

from dtrain.cloud.ledger import Standing
from dtrain.cloud.options import CloudOptions
from dtrain.cloud.order_book import OrderBook
from dtrain.units import dollars, duration

SALVAGE_SHARE, SALVAGE_SECONDS = 0.1, 900.0
"""Before the limit, to save a checkpoint and bring it home: a tenth of it, a quarter of an hour at most."""


class Meter:
    """From the first machine of this life of the run."""

    def __init__(self, book: OrderBook, options: CloudOptions, standing: Standing) -> None:
        self.options = options
        self.limit_seconds = book.limit_hours * 3600
        """By the price of the first offer, until the machines that are there are `priced`."""
        self.estimated_hours = book.estimated_hours
        began = min((one.asked for one in standing.of_this_life), default=time.time())
        self._before = min(max(0.0, time.time() - began), self.limit_seconds)
        self._since = time.monotonic()

    @property
    def passed_seconds(self) -> float:
        return self._before + time.monotonic() - self._since

    def priced(self, usd_per_hour: float, spent_usd: float) -> None:
        """All machines of the run cost so much from now on, and cost that much before: --max-cost buys the rest."""
        if self.options.max_cost and usd_per_hour:
            bought_seconds = max(0.0, self.options.max_cost - spent_usd) / usd_per_hour * 3600
            hours = self.options.max_hours or math.inf
            self.limit_seconds = min(hours * 3600, self.passed_seconds + bought_seconds)

    @property
    def remaining_seconds(self) -> float:
        """For the dead-man switch of a machine that is ordered now."""
        return max(1.0, self.limit_seconds - self.passed_seconds)

    def seconds_to_stop(self) -> float:
        """Until the run must save, so that there is time to bring it home before the limit."""
        margin = min(SALVAGE_SECONDS, SALVAGE_SHARE * self.limit_seconds)
        return max(0.0, self.limit_seconds - margin - self.passed_seconds)

    def is_nearly_over(self) -> bool:
        return self.seconds_to_stop() <= 0

    def is_over(self) -> bool:
        return self.passed_seconds > self.limit_seconds

    def words(self) -> str:
        return f"{self.words_there()} after {duration(self.passed_seconds)}"

    def words_there(self) -> str:
        said = f"--max-cost {self.options.max_cost:g}" if self.options.max_cost else None
        said = said or (f"--max-hours {self.options.max_hours:g}" if self.options.max_hours else "the time limit")
        return f"stopped: {said} is nearly reached"

    def cost_words(self, standing: Standing) -> str:
        """What it cost against the estimate."""
        cost = standing.usd(time.time())
        rates = [one.usd_per_hour for one in standing.of_this_life if one.state != "refused"]
        nodes = 1 + max((one.node for one in standing.of_this_life), default=0)
        expected = (max(rates) if rates else 0.0) * nodes * self.estimated_hours
        return f"it cost {dollars(cost)}, {dollars(expected)} was the estimate"
