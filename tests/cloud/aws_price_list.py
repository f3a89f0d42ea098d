"""AWS's Price List Query API for the tests: products as AWS describes them, matched as it does, one to a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TARGET = "AWSPriceListService.GetProducts"
KEYS = ("operatingSystem", "preInstalledSw", "tenancy", "capacitystatus")
PLAIN = dict(zip(KEYS, ("Linux", "NA", "Shared", "Used"), strict=True))


def product(machine: str, region: str, usd: float, **other: str) -> dict[str, Any]:
    """On demand; `other`: attributes that make it another product."""
    sku = f"{machine}.{region}.{'.'.join(other.values())}".upper()
    price = {"unit": "Hrs", "pricePerUnit": {"USD": f"{usd:.10f}"}, "rateCode": f"{sku}.1", "beginRange": "0"}
    term = {"sku": sku, "effectiveDate": "2026-11-01T00:00:00Z", "priceDimensions": {f"{sku}.1": price}}
    about = {"servicecode": "AmazonEC2", "instanceType": machine, "regionCode": region, **PLAIN, **other}
    return {
        "product": {"productFamily": "Compute Instance", "sku": sku, "attributes": about},
        "serviceCode": "AmazonEC2", "terms": {"OnDemand": {f"{sku}.A": term}}, "version": "20261120",
    }  # fmt: skip


PRODUCTS = [
    product("p4de.24xlarge", "us-east-1", 27.0),
    product("p4de.24xlarge", "us-east-1", 41.0, operatingSystem="Windows"),
    product("p4de.24xlarge", "us-east-1", 30.0, tenancy="Dedicated"),
    product("p4de.24xlarge", "us-east-1", 26.0, capacitystatus="AllocatedCapacityReservation"),
    product("p4de.24xlarge", "us-east-1", 28.0, preInstalledSw="SQL Web"),
    product("p4de.24xlarge", "us-east-1", 0.0, marketoption="CapacityBlock"),
    product("p4de.24xlarge", "us-west-2", 26.5),
    product("p4de.24xlarge", "ap-northeast-1", 25.0),
    product("p5.48xlarge", "us-east-2", 54.0),
]


def get_products(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The answer's document."""
    wanted = {one["Field"]: one["Value"] for one in asked["Filters"] if one["Type"] == "TERM_MATCH"}
    matching = [
        one for one in PRODUCTS
        if asked["ServiceCode"] == "AmazonEC2" and wanted.items() <= one["product"]["attributes"].items()
    ]  # fmt: skip
    number = int(asked.get("NextToken", 0))
    page = [json.dumps(one) for one in matching[number : number + 1]]
    more = {"NextToken": str(number + 1)} if number + 1 < len(matching) else {}
    return {"FormatVersion": "aws_v1", "PriceList": page, **more}
