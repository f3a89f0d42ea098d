"""What AWS asks for its machines on demand, by its Price List Query API; each region has its own price."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dtrain.cloud.dated_offers import Price
from dtrain.cloud.provider import Offer, ProviderDown, ProviderError

from .aws_client import NAME, AwsClients, told

REGION = "us-east-1"
"""One of the API's own; it tells the prices of every region."""
SOURCE = "AWS's price list"
PLAIN = {"operatingSystem": "Linux", "preInstalledSw": "NA", "tenancy": "Shared", "capacitystatus": "Used"}
"""What a machine is as `run_instances` orders it: nothing on it that costs, no reservation, nobody's own host."""


def priced(rows: Sequence[Price], regions: Sequence[str], clients: AwsClients) -> list[Offer]:
    """The machines of the dated table, at today's price where AWS tells it, else at the table's, which says why."""
    try:
        live = [offer for offer in everywhere(rows, clients) if offer.region in regions]
    except ProviderError as error:
        return _as_dated(rows, regions, f"; AWS told no price: {error.message}")
    return live or _as_dated(rows, regions, "; AWS's price list has it in none of these regions")


def everywhere(rows: Iterable[Price], clients: AwsClients) -> list[Offer]:
    """Each machine in each region that sells it, at today's price."""
    kinds = {row.machine: row for row in rows}
    return [
        Offer(NAME, region, machine, row.gpu, row.gpus, usd, priced_on="live", price_source=SOURCE)
        for machine, row in kinds.items()
        for region, usd in sorted(_usd_per_hour(machine, clients).items())
    ]


def _as_dated(rows: Sequence[Price], regions: Sequence[str], why: str) -> list[Offer]:
    return [
        Offer(NAME, region, row.machine, row.gpu, row.gpus, row.usd_per_hour, priced_on=row.priced_on,
              price_source=row.source + why)
        for row in rows
        for region in regions
    ]  # fmt: skip


def _usd_per_hour(machine: str, clients: AwsClients) -> dict[str, float]:
    """Region → price. ProviderDown for an answer that is no price list."""
    wanted = {**PLAIN, "instanceType": machine}
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    with told(REGION, machine):
        pages = clients.pricing(REGION).get_paginator("get_products").paginate(ServiceCode="AmazonEC2", Filters=filters)
        products = [text for page in pages for text in page["PriceList"]]
    try:
        return {region: usd for text in products for region, usd in _regional(json.loads(text))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProviderDown(f"AWS's price list of {machine} cannot be read: {type(error).__name__}: {error}") from None


def _regional(product: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Nothing for a product of another kind: a capacity block stands in the list at $0 an hour."""
    for term in product["terms"].get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            usd = float(dimension["pricePerUnit"].get("USD", 0))
            if usd > 0 and dimension["unit"] == "Hrs":
                yield product["product"]["attributes"]["regionCode"], usd
