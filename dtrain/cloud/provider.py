"""What a provider of rented machines is: four calls over plain data. Its file in `launchers/` is short; the road from a
price to a destroyed machine is the same for all of them (`rental`).

    offers(need)     what could be rented, with price and capacity where the provider tells
    create(order)    one machine, tagged; the only call that spends
    find(run_id)     the machines of ours that exist, by their tags or names
    destroy(machine) end it; silent where it is gone already

Nothing here waits: who calls polls. Each call raises `ProviderError`s only, told apart by what a person must do next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from dtrain.errors import LauncherRefused

TAG = "dtrain"
"""The tag (or label) key whose value is the run id: what `find` looks for. Providers without tags have `Order.name`."""

InstanceState = Literal["starting", "running", "stopping", "stopped", "gone"]
"""`stopped` is still billed in part (disks): only `gone` costs nothing."""


@dataclass(frozen=True)
class Need:
    """What one node of the run must be."""

    gpu: str
    """Catalogue name, such as `a100-80gb`; `cpu` for a machine without one."""
    gpus: int
    """On each node."""
    nodes: int = 1
    disk_gib: int = 100
    spot: bool = False
    regions: tuple[str, ...] = ()
    """Where it may be; empty: anywhere."""


@dataclass(frozen=True)
class Offer:
    """A machine that could be rented now."""

    provider: str
    region: str
    machine: str
    """As the provider calls the type."""
    gpu: str
    gpus: int
    usd_per_hour: float
    """Of one machine, disk included where the provider tells."""
    spot: bool = False
    zone: str = ""
    priced_on: str = ""
    """A date, or `live`."""
    price_source: str = ""
    capacity: bool | None = None
    """None: the provider does not tell before one asks for it."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The provider's own words for it, such as the number of an ask."""


@dataclass(frozen=True)
class Order:
    """One machine to create, whole: what `create` sends is a pure function of it, and so is what a dry run prints."""

    run_id: str
    node: int
    attempt: int
    """Counts the machines tried for this node, from 1: a bad host was given back, a spot machine was taken away."""
    offer: Offer
    user_data: str
    """A shell script run as root at first boot: arms the dead-man switch, puts the host key in. No other secret."""
    public_key: str
    """The run's own OpenSSH key, one line: who may log in."""
    client_address: str
    """The only address that may open SSH, as CIDR, such as `203.0.113.7/32`."""
    max_seconds: float
    """After this the provider (where it can) or the machine ends itself."""
    disk_gib: int = 100
    image: str | None = None
    """None: the provider file's pinned one."""
    nodes: int = 1
    """Of the run: more than one must be near to each other and reach each other."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`launchers.NAME` of the config: what only this provider knows (subnet, network, key names …)."""

    @property
    def name(self) -> str:
        """Unique per machine, and tells whose it is: found by it where a provider has no tags. At most 63 letters of
        `[a-z0-9-]`, as GCP wants."""
        return f"dtrain-{self.run_id}-n{self.node}-a{self.attempt}"

    @property
    def token(self) -> str:
        """The same for each try of this one machine, another for the next: at most 64 ASCII letters, as AWS wants."""
        return self.name

    @property
    def tags(self) -> dict[str, str]:
        return {TAG: self.run_id, "dtrain-node": str(self.node), "dtrain-attempt": str(self.attempt)}


@dataclass(frozen=True)
class Instance:
    """A machine that exists, or did."""

    provider: str
    id: str
    name: str
    run_id: str
    node: int
    state: InstanceState
    region: str
    machine: str
    attempt: int = 1
    zone: str = ""
    address: str | None = None
    """Where SSH answers; None while the provider has not said."""
    port: int = 22
    user: str = "root"
    private_address: str | None = None
    """For several nodes: where the others reach it."""
    preempted: bool = False
    """The provider took it, or announced to."""
    reason: str = ""
    """Why it is not running, in the provider's words."""
    console: str = ""
    """A link for a person."""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Abilities:
    """What differs between providers, as facts the road reads."""

    idempotent_create: bool
    """A second create with the same token gives the first one's machine. Without it, `find` comes before a retry."""
    server_side_limit: bool
    """The provider itself ends a machine after `Order.max_seconds`: a dead-man switch that needs nobody."""
    shutdown_ends_billing: bool
    """`shutdown` on the machine terminates it (AWS with its flag): a timer set in user data is a dead-man switch."""
    runs_user_data: bool
    """False: a container without cloud-init; `Order.user_data` is then sent as the container's start command."""
    spot: bool
    several_nodes: bool
    """Private addresses between machines of one run, near to each other."""
    watchdog_key: str | None = None
    """Environment variable of the client whose value lets a watchdog on the machine end it through the API; needed
    where neither of the dead-man switches above exists. Sent over SSH into memory, never into user data."""


@runtime_checkable
class Provider(Protocol):
    """Made without arguments beyond `launchers.NAME`; reads keys from its own chain or environment when first used."""

    name: str
    abilities: Abilities

    def offers(self, need: Need) -> Sequence[Offer]:
        """Cheapest first; empty where it has no such machine (`NoSuchMachine` names the nearest it has)."""

    def requests(self, order: Order) -> Sequence[Mapping[str, Any]]:
        """Pure: the very requests `create` sends, as JSON-ready data, secrets by name only. What a dry run prints."""

    def create(self, order: Order) -> Instance:
        """One machine. `OutcomeUnknown` where it may exist in spite of the error: the ledger's entry then stays."""

    def find(self, run_id: str | None = None) -> Sequence[Instance]:
        """Machines of ours that are not `gone`: of one run, or all of them in every region that was ever used."""

    def destroy(self, instance: Instance) -> None:
        """Ask for its end, with disks and what else is billed, and what `create` made beside it (key, firewall).
        Silent where it is gone. Returns at once: `find` tells when it is gone."""


@runtime_checkable
class CanTidy(Protocol):
    """An ability: take away what `create` made beside the machines and what stays while they exist (a firewall)."""

    def tidy(self, run_id: str) -> None:
        """Called when every machine of the run is gone; may be repeated."""


@runtime_checkable
class EndsByRequest(Protocol):
    """An ability of providers with a `watchdog_key`: the request with which a machine ends itself."""

    def ending(self, instance: Instance) -> Mapping[str, Any]:
        """method, url, headers, body; `$NAME` stands for the key."""


# --- what a call may answer ---------------------------------------------------------------------------------------


class ProviderError(LauncherRefused):
    """Exit code 5. One line of what happened, in the provider's words, and `fix`: what to do."""

    retry_seconds: float | None = None
    """Set where the same call may be repeated after so long."""
    elsewhere: bool = False
    """Another region, machine or provider may have what this one has not: `--anywhere` goes on there."""


class NoCapacity(ProviderError):
    elsewhere = True


class QuotaReached(ProviderError):
    elsewhere = True


class NoSuchMachine(ProviderError):
    """A region without the type, or a provider without the card."""

    elsewhere = True


class NoCredentials(ProviderError):
    """None were found, or they are not believed."""


class NoRights(ProviderError):
    """The key may not do this: `message` names the right."""


class AccountClosed(ProviderError):
    """Suspended, unpaid, or a spend limit reached."""


class Throttled(ProviderError):
    retry_seconds = 5.0


class ProviderDown(ProviderError):
    """It answers with an error of its own, or with no document (HTML from something in between)."""

    retry_seconds = 10.0


class OutcomeUnknown(ProviderError):
    """A create or destroy was sent and no answer came: `find` must tell."""

    retry_seconds = 5.0
