"""How AWS is asked: boto3 clients by region, and its errors in words of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

from dtrain.cloud.provider import (
    AccountClosed,
    NoCapacity,
    NoCredentials,
    NoRights,
    NoSuchMachine,
    OutcomeUnknown,
    ProviderDown,
    ProviderError,
    QuotaReached,
    Throttled,
)
from dtrain.errors import BadInput, PartMissing

NAME = "aws"
FALLBACK_REGION = "us-east-1"
READ_SECONDS = 30.0
QUOTAS = "https://console.aws.amazon.com/servicequotas/home/services/ec2/quotas"
_QUOTA_CODES = {"p": "L-417A185B (Running On-Demand P instances)", "g": "L-DB2E81BA (Running On-Demand G and VT)"}
"""Codes of Service Quotas, by the first letter of the machine type."""


@cache
def _loader(data_path: str | None) -> Any:
    """Reads EC2's long description once for a process instead of once for a session."""
    from botocore.loaders import create_loader

    return create_loader(data_path)


class AwsClients:
    """One client for each region, made when it is first needed. Credentials: boto3's own chain."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], Any] = {}

    @cached_property
    def _session(self) -> Any:
        try:
            import boto3
            import botocore.session
        except ModuleNotFoundError:
            raise PartMissing.of("boto3", "aws", "renting machines at AWS") from None
        core = botocore.session.get_session()
        core.register_component("data_loader", _loader(core.get_config_variable("data_path")))
        return boto3.Session(botocore_session=core)

    @property
    def region(self) -> str:
        """What AWS_REGION, AWS_DEFAULT_REGION or the profile says."""
        return str(self._session.region_name or FALLBACK_REGION)

    def ec2(self, region: str) -> Any:
        return self._client("ec2", region)

    def pricing(self, region: str) -> Any:
        return self._client("pricing", region)

    def _client(self, service: str, region: str) -> Any:
        from botocore.config import Config

        if (service, region) not in self._made:
            # our own patience repeats: botocore's retries would hide from the ledger what was sent
            config = Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=READ_SECONDS)
            with told(region, ""):
                if self._session.get_credentials() is None:
                    raise NoCredentials(
                        "no AWS credentials were found", key="--on aws",
                        fix="aws configure, or export AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                    )  # fmt: skip
                self._made[service, region] = self._session.client(service, region_name=region, config=config)
        return self._made[service, region]


@contextmanager
def told(region: str, machine: str, creates: bool = False) -> Iterator[None]:
    """boto3's errors in our words. `creates`: an answer that was lost leaves it open whether it happened."""
    import botocore.exceptions as boto
    from botocore.parsers import ResponseParserError

    try:
        yield
    except boto.ClientError as error:
        raise _of_code(error, region, machine, creates) from None
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError) as error:
        raise NoCredentials(f"AWS credentials: {error}", key="--on aws", fix="aws sts get-caller-identity") from None
    except boto.ProfileNotFound as error:
        raise NoCredentials(str(error), key="AWS_PROFILE", fix="aws configure list-profiles") from None
    except (boto.InvalidRegionError, boto.NoRegionError) as error:
        raise BadInput(str(error), key="launchers.aws.regions", value=region) from None
    except (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError) as error:
        raise ProviderDown(f"AWS is not reached: {error}", fix="is this machine online?") from None
    except (boto.ReadTimeoutError, boto.ConnectionClosedError, boto.HTTPClientError) as error:
        kind = OutcomeUnknown if creates else ProviderDown
        raise kind(f"AWS gave no answer: {error}") from None
    except (boto.BotoCoreError, ResponseParserError) as error:
        kind = OutcomeUnknown if creates else ProviderDown
        raise kind(f"AWS's answer is none: {' '.join(str(error).split())[:200]}") from None


def _of_code(error: Any, region: str, machine: str, creates: bool) -> ProviderError:
    code, said = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    for codes, make in _KINDS:
        if code in codes:
            return make(code, _one_line(said), region, machine)
    if status >= 500 or not code or not code[0].isalpha():  # a page of something in between has a number for a code
        kind = OutcomeUnknown if creates else ProviderDown
        return kind(f"AWS answers {status} in {region}: {_one_line(said) or code}", fix="try again later")
    return ProviderError(f"AWS refuses in {region}: {code}: {_one_line(said)}")


def _one_line(said: str) -> str:
    """Without the encoded part of an authorization failure, which tells a person nothing."""
    return " ".join(said.split("Encoded authorization failure message")[0].split())[:300]


Make = Callable[[str, str, str, str], ProviderError]


def _no_capacity(code: str, said: str, region: str, machine: str) -> ProviderError:
    return NoCapacity(f"AWS has no {machine} free in {region} now ({code})", key="launchers.aws.regions", value=region)


def _quota(code: str, said: str, region: str, machine: str) -> ProviderError:
    quota = _QUOTA_CODES.get(machine[:1], "of this machine's family")
    return QuotaReached(
        f"your AWS account may not run {machine} in {region}: {code}: {said}",
        key="launchers.aws.regions", value=region,
        fix=f"ask for more vCPUs, quota {quota}: {QUOTAS}",
    )  # fmt: skip


def _no_such(code: str, said: str, region: str, machine: str) -> ProviderError:
    return NoSuchMachine(
        f"{region} has no {machine}: {said}", key="launchers.aws.regions", value=region,
        fix="name another region: launchers.aws.regions",
    )  # fmt: skip


def _credentials(code: str, said: str, region: str, machine: str) -> ProviderError:
    return NoCredentials(f"AWS does not believe the credentials: {code}: {said}", fix="aws sts get-caller-identity")


def _rights(code: str, said: str, region: str, machine: str) -> ProviderError:
    return NoRights(f"the AWS key may not do this in {region}: {said}", fix="allow the actions of docs/clouds.md")


def _closed(code: str, said: str, region: str, machine: str) -> ProviderError:
    return AccountClosed(
        f"the AWS account cannot rent in {region}: {code}: {said}", fix="see the account's billing page"
    )


def _throttled(code: str, said: str, region: str, machine: str) -> ProviderError:
    return Throttled(f"AWS asks for patience in {region}: {code}")


_KINDS: tuple[tuple[frozenset[str], Make], ...] = (
    (frozenset({"InsufficientInstanceCapacity", "InsufficientHostCapacity", "SpotMaxPriceTooLow",
                "InsufficientReservedInstanceCapacity", "InsufficientCapacity"}), _no_capacity),
    (frozenset({"VcpuLimitExceeded", "MaxSpotInstanceCountExceeded", "InstanceLimitExceeded"}), _quota),
    (frozenset({"Unsupported", "InvalidInstanceType", "UnsupportedOperation"}), _no_such),
    (frozenset({"AuthFailure", "InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken", "RequestExpired",
                "UnrecognizedClientException"}), _credentials),
    (frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"}), _rights),
    (frozenset({"OptInRequired", "PendingVerification", "Blocked", "AccountProblem"}), _closed),
    (frozenset({"RequestLimitExceeded", "Throttling", "ThrottlingException", "EC2ThrottledException"}), _throttled),
)  # fmt: skip
"""Codes of the EC2 API's error list → what a person can do about it."""
