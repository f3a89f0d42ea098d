"""What a provider's tests give to the shared ones: an account whose machines really boot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tests.cloud.tripwire import Tripwire


class World(Protocol):
    """One account at one provider, for one test module; see AwsWorld."""

    tripwire: Tripwire
    created: list[str]
    """Names (or tokens) of every machine that was ever made."""

    @property
    def environment(self) -> Mapping[str, str]: ...

    @property
    def options(self) -> Mapping[str, Any]:
        """`launchers.NAME` for a run of the tests."""

    def machines(self) -> list[str]:
        """What is there and billed now."""

    def reset(self) -> None: ...
