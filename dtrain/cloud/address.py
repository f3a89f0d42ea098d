"""This machine's address as the world sees it: the only one that may open SSH to what is rented."""

from __future__ import annotations

import ipaddress
import urllib.request

from dtrain.cloud.options import CloudOptions
from dtrain.errors import LauncherRefused

WHO_AM_I = "https://checkip.amazonaws.com"
"""Amazon's own answer to this question; one line of text."""
HIDDEN = "CLIENT_ADDRESS"


def client_address(options: CloudOptions) -> str:
    if options.client_address is not None:
        return options.client_address
    try:
        with urllib.request.urlopen(WHO_AM_I, timeout=10) as answer:
            told = ipaddress.ip_address(answer.read(64).decode().strip())
    except (OSError, ValueError) as error:
        raise LauncherRefused(
            f"this machine's own address is not known: {error}", key="launchers.NAME.client_address",
            fix="say it: client_address: 203.0.113.7/32",
        ) from None  # fmt: skip
    return f"{told}/{told.max_prefixlen}"
