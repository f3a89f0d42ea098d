"""The dated table of prices as a provider needs it: its own rows for a card."""

from __future__ import annotations

from dtrain.cloud.provider import Need, NoSuchMachine
from dtrain.hardware.prices import Price, prices, shipped_prices

__all__ = ["Price", "rows_of", "shipped_rows"]


def rows_of(provider: str, need: Need) -> list[Price]:
    """The machines with the fewest cards that are enough. NoSuchMachine where the table has none."""
    rows = [one for one in prices() if one.provider == provider and one.gpu == need.gpu and one.gpus >= need.gpus]
    if not rows:
        raise NoSuchMachine(
            f"the price table has no machine at {provider} with {need.gpus} × {need.gpu}", key="--profile",
            fix=f"name one and its price: launchers.{provider}.machine, usd_per_hour and regions",
        )  # fmt: skip
    least = min(row.gpus for row in rows)
    return [row for row in rows if row.gpus == least]


def shipped_rows(provider: str) -> list[Price]:
    """All that the shipped table says is sold by a provider."""
    return [row for row in shipped_prices() if row.provider == provider]
