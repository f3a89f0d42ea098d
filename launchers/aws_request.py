"""What AWS is sent for one machine: pure functions of an order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from dtrain.cloud.provider import Order
from dtrain.errors import BadInput

GPU_IMAGE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
"""AWS's Deep Learning Base AMI: Ubuntu 24.04 with Python 3.12 and NVIDIA's driver (its release notes of 2026-10)."""
CPU_IMAGE = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
ROOT_DEVICE = "/dev/sda1"
"""Of Ubuntu's images."""
EFA_CARDS = {"p4d.24xlarge": 4, "p4de.24xlarge": 4, "p5.48xlarge": 32, "p5e.48xlarge": 32, "p5en.48xlarge": 16,
             "p6-b200.48xlarge": 8}  # fmt: skip
"""Network cards with an EFA interface, as `describe-instance-types` tells. Rendered, never tried on real machines."""
GROUP_ID, PLACEMENT = "SECURITY_GROUP", "cluster"


@dataclass(frozen=True)
class AwsOptions:
    subnet: str | None = None
    """None: the default VPC's."""
    private_addresses: bool = False
    """Log in to the address inside the VPC: this machine is in it, or a VPN leads there."""
    profile_role: str | None = None
    """Name of an instance profile, such as one that may write to `output: s3://…`."""
    efa: bool = True
    """Use EFA between nodes where the machine has it."""


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "subnet": (lambda value: isinstance(value, str) and value.startswith("subnet-"), "subnet-…"),
    "private_addresses": (lambda value: isinstance(value, bool), "true or false"),
    "profile_role": (lambda value: isinstance(value, str) and value != "", "the name of an instance profile"),
    "efa": (lambda value: isinstance(value, bool), "true or false"),
}
assert set(_RULES) == {one.name for one in fields(AwsOptions)}


def read_options(told: Mapping[str, Any]) -> AwsOptions:
    """BadInput names the key that is not one, or what its value may be."""
    given = {key: value for key, value in told.items() if value is not None}
    for key, value in given.items():
        where = f"launchers.aws.{key}"
        if key not in _RULES:
            from dtrain.cloud.options import OPTIONS

            allowed = ", ".join([*OPTIONS, *_RULES])
            raise BadInput("the aws launcher has no such option", key=where, value=value, allowed=allowed)
        accepts, allowed = _RULES[key]
        if not accepts(value):
            raise BadInput("not a value for this option", key=where, value=value, allowed=allowed)
    return AwsOptions(**given)


def group_name(run_id: str) -> str:
    """Of the run's security group, and of its placement group."""
    return f"dtrain-{run_id}"


def create_group(order: Order) -> dict[str, Any]:
    return {
        "GroupName": group_name(order.run_id), "Description": "dtrain: SSH from the client only",
        "TagSpecifications": [{"ResourceType": "security-group", "Tags": _tags(order)}],
    }  # fmt: skip


def open_ssh(order: Order, group_id: str) -> dict[str, Any]:
    """SSH from the client; between nodes everything, as NCCL picks its ports and EFA wants it."""
    ranges = "Ipv6Ranges" if ":" in order.client_address else "IpRanges"
    cidr = "CidrIpv6" if ":" in order.client_address else "CidrIp"
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, ranges: [{cidr: order.client_address}]}
    each_other = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]}] if order.nodes > 1 else []
    return {"GroupId": group_id, "IpPermissions": [ssh, *each_other]}


def reach_each_other(group_id: str) -> dict[str, Any]:
    """EFA wants the way out named, too: "all traffic to and from the security group itself" (EC2's user guide)."""
    return {"GroupId": group_id, "IpPermissions": [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]}]}


def create_placement(order: Order) -> dict[str, Any]:
    return {"GroupName": group_name(order.run_id), "Strategy": PLACEMENT}


def run_instances(order: Order, group_id: str) -> dict[str, Any]:
    options, offer = read_options(order.options), order.offer
    image = order.image or f"resolve:ssm:{GPU_IMAGE if offer.gpus else CPU_IMAGE}"
    disk = {"VolumeSize": order.disk_gib, "VolumeType": "gp3", "DeleteOnTermination": True}
    told: dict[str, Any] = {
        "ImageId": image, "InstanceType": offer.machine, "MinCount": 1, "MaxCount": 1, "ClientToken": order.token,
        "InstanceInitiatedShutdownBehavior": "terminate", "UserData": order.user_data,
        "BlockDeviceMappings": [{"DeviceName": ROOT_DEVICE, "Ebs": disk}],
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
        "TagSpecifications": [{"ResourceType": kind, "Tags": _tags(order)} for kind in ("instance", "volume")],
    }  # fmt: skip
    told |= _network(order, options, group_id)
    if order.nodes > 1:
        told["Placement"] = {"GroupName": group_name(order.run_id)}
    if offer.spot:
        told["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
        }
    if options.profile_role:
        told["IamInstanceProfile"] = {"Name": options.profile_role}
    return told


def _network(order: Order, options: AwsOptions, group_id: str) -> dict[str, Any]:
    cards = EFA_CARDS.get(order.offer.machine, 0) if order.nodes > 1 and options.efa else 0
    subnet = {"SubnetId": options.subnet} if options.subnet else {}
    if not cards:
        return {"SecurityGroupIds": [group_id], **subnet}
    return {
        "NetworkInterfaces": [
            {
                "NetworkCardIndex": card, "DeviceIndex": min(card, 1),
                "InterfaceType": "efa" if card == 0 else "efa-only",
                "Groups": [group_id], "DeleteOnTermination": True, **subnet,
            }
            for card in range(cards)
        ]
    }  # fmt: skip


def _tags(order: Order) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in {"Name": order.name, **order.tags}.items()]
