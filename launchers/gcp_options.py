"""`launchers: {gcp: {…}}`: what only Compute Engine knows, whose project pays, and where the API is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dtrain.cloud.options import OPTIONS, TEXT, Rule
from dtrain.cloud.provider import NoCredentials

from .rest import closed

NAME = "gcp"
PROJECT_VARIABLES = ("GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT")
ENDPOINT_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"
"""Names another server; gcloud reads it too. Over plain http no credentials are sent."""


@dataclass(frozen=True)
class GcpOptions:
    project_id: str | None = None
    """Which project pays; else what the environment names."""
    network: str = "global/networks/default"
    subnetwork: str | None = None
    """`regions/REGION/subnetworks/NAME`; needed in networks that do not make their own."""
    disk_type: str | None = None
    """None: pd-balanced, or hyperdisk-balanced where the machine takes no other."""

    def project_or_refuse(self) -> str:
        project = self.project_id or next(
            (os.environ[name] for name in PROJECT_VARIABLES if os.environ.get(name)), None
        )
        if not project:
            raise NoCredentials(
                "no Google Cloud project is named", key=f"launchers.{NAME}.project_id",
                fix=f"export {PROJECT_VARIABLES[0]}=MY-PROJECT, or --set launchers.{NAME}.project_id=MY-PROJECT",
            )  # fmt: skip
        return project


OWN: dict[str, Rule] = {field.name: TEXT for field in fields(GcpOptions)}
assert not set(OWN) & set(OPTIONS), "a name that every cloud launcher has means something else"


def options_of(told: Mapping[str, Any]) -> GcpOptions:
    return GcpOptions(**closed(NAME, told, OWN))


def endpoint() -> str | None:
    """Scheme and host only, as the official client wants it; None: Google's."""
    said = os.environ.get(ENDPOINT_VARIABLE)
    return said.split("/compute/")[0].rstrip("/") if said else None
