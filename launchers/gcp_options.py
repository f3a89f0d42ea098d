"""`launchers: {gcp: {…}}`: what only Compute Engine knows. Closed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dtrain.cloud.provider import NoCredentials
from dtrain.errors import BadInput

WHERE = "launchers.gcp"
PROJECT_VARIABLES = ("GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT")
ENDPOINT_VARIABLE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"
"""Read by gcloud too."""


@dataclass(frozen=True)
class GcpOptions:
    project: str | None = None
    """Which project pays; else what the environment names."""
    network: str = "global/networks/default"
    subnetwork: str | None = None
    """`regions/REGION/subnetworks/NAME`; needed in networks that do not make their own."""
    disk_type: str | None = None
    """None: pd-balanced, or hyperdisk-balanced where the machine takes no other."""
    api_endpoint: str | None = None
    """Another server than compute.googleapis.com. Over plain http no credentials are sent."""

    def project_or_refuse(self) -> str:
        project = self.project or next((os.environ[name] for name in PROJECT_VARIABLES if os.environ.get(name)), None)
        if not project:
            raise NoCredentials(
                "no Google Cloud project is named", key=f"{WHERE}.project",
                fix=f"export {PROJECT_VARIABLES[0]}=MY-PROJECT, or --set {WHERE}.project=MY-PROJECT",
            )  # fmt: skip
        return project

    def endpoint(self) -> str | None:
        """Scheme and host only, as the official client wants it."""
        said = self.api_endpoint or os.environ.get(ENDPOINT_VARIABLE)
        return said.split("/compute/")[0].rstrip("/") if said else None


def read_options(told: Mapping[str, Any]) -> GcpOptions:
    """BadInput names the key that is not one, or not a text."""
    given = {key: value for key, value in told.items() if value is not None}
    known = [field.name for field in fields(GcpOptions)]
    for key, value in given.items():
        if key not in known:
            raise BadInput(
                "the gcp launcher has no such option", key=f"{WHERE}.{key}", value=value, allowed=", ".join(known)
            )
        if not isinstance(value, str) or not value.isprintable() or not value:
            raise BadInput("not a value for this option", key=f"{WHERE}.{key}", value=value, allowed="a text")
    return GcpOptions(**given)
