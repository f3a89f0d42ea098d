"""AWS EC2 by boto3: idempotent by token, a machine that shuts down is terminated, spot, several nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dtrain.cloud import ledger
from dtrain.cloud.dated_offers import rows_of, shipped_rows
from dtrain.cloud.launcher import CloudLauncher
from dtrain.cloud.provider import (
    TAG,
    Abilities,
    Instance,
    InstanceState,
    Need,
    Offer,
    Order,
)

from . import aws_prices, aws_request
from .aws_client import NAME, AwsClients, told
from .aws_request import GROUP_ID, group_name, read_options

PRICED_REGIONS = ("us-east-1", "us-east-2", "us-west-2")
"""Where the dated table's prices hold; the larger machines are there if anywhere."""
STATES: dict[str, InstanceState] = {
    "pending": "starting", "running": "running", "shutting-down": "stopping", "stopping": "stopping",
    "stopped": "stopped", "terminated": "gone",
}  # fmt: skip
NOT_GONE = [state for state, means in STATES.items() if means != "gone"]
_TAKEN = ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown", "Server.InsufficientInstanceCapacity")
_IN_USE = ("DependencyViolation", "InvalidPlacementGroup.InUse")
_ABSENT = ("InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed", "InvalidGroup.NotFound",
           "InvalidPlacementGroup.Unknown")  # fmt: skip


class Aws:
    name = NAME
    abilities = Abilities(
        idempotent_create=True, server_side_limit=False, shutdown_ends_billing=True, runs_user_data=True, spot=True,
        several_nodes=True,
    )  # fmt: skip

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = read_options(options or {})
        self.clients = AwsClients()

    # --- offers ---

    def offers(self, need: Need) -> Sequence[Offer]:
        """At live prices: those of AWS's price list, or of its spot history. Of the dated table where it tells none."""
        kinds = rows_of(NAME, need)
        regions = need.regions or self._offered_in()
        if need.spot:
            return self._spot_offers(need, {row.machine: row.gpus for row in kinds}, regions)
        return sorted(aws_prices.priced(kinds, regions, self.clients), key=lambda offer: offer.usd_per_hour)

    def all_offers(self) -> Sequence[Offer]:
        """Every machine of the shipped table, in the regions where it is offered unless a person names others."""
        rows = shipped_rows(NAME)
        return [one for one in aws_prices.everywhere(rows, self.clients) if one.region in self._offered_in()]

    def _offered_in(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.clients.region, *PRICED_REGIONS]))

    def _spot_offers(self, need: Need, machines: Mapping[str, int], regions: Iterable[str]) -> list[Offer]:
        """The newest price of each zone."""
        found = {}
        for region in regions:
            with told(region, "spot"):
                history = self.clients.ec2(region).describe_spot_price_history(
                    InstanceTypes=list(machines), ProductDescriptions=["Linux/UNIX"], MaxResults=100
                )["SpotPriceHistory"]
            for row in sorted(history, key=lambda row: row["Timestamp"]):
                zone, machine = row["AvailabilityZone"], row["InstanceType"]
                if machine not in machines:
                    continue
                found[zone, machine] = Offer(
                    NAME, region, machine, need.gpu, machines[machine], float(row["SpotPrice"]), True, zone, "live",
                    "EC2 spot price history",
                )  # fmt: skip
        return sorted(found.values(), key=lambda offer: offer.usd_per_hour)

    # --- create ---

    def requests(self, order: Order) -> Sequence[Mapping[str, Any]]:
        where = {"service": "ec2", "region": order.offer.region}
        asked = [("CreateSecurityGroup", aws_request.create_group(order))]
        asked.append(("AuthorizeSecurityGroupIngress", aws_request.open_ssh(order, GROUP_ID)))
        if order.nodes > 1:
            asked.append(("AuthorizeSecurityGroupEgress", aws_request.reach_each_other(GROUP_ID)))
            asked.append(("CreatePlacementGroup", aws_request.create_placement(order)))
        asked.append(("RunInstances", _with_zone(aws_request.run_instances(order, GROUP_ID), order)))
        return [{**where, "action": action, "parameters": parameters} for action, parameters in asked]

    def create(self, order: Order) -> Instance:
        region, machine = order.offer.region, order.offer.machine
        ec2 = self.clients.ec2(region)
        with told(region, machine):
            group = self._security_group(ec2, order)
            if order.nodes > 1:
                _unless(("InvalidPlacementGroup.Duplicate",), ec2.create_placement_group,
                        **aws_request.create_placement(order))  # fmt: skip
        with told(region, machine, creates=True):
            answer = ec2.run_instances(**_with_zone(aws_request.run_instances(order, group), order))
        return self._instance(region, answer["Instances"][0])

    def _security_group(self, ec2: Any, order: Order) -> str:
        """The run's own; made once, whoever was killed in between."""
        made = _unless(("InvalidGroup.Duplicate",), ec2.create_security_group, **aws_request.create_group(order))
        group = made["GroupId"] if made else self._groups(ec2, order.run_id)[0]
        opened = aws_request.open_ssh(order, group)
        _unless(("InvalidPermission.Duplicate",), ec2.authorize_security_group_ingress, **opened)
        if order.nodes > 1:
            way_out = aws_request.reach_each_other(group)
            _unless(("InvalidPermission.Duplicate",), ec2.authorize_security_group_egress, **way_out)
        return str(group)

    def _groups(self, ec2: Any, run_id: str) -> list[str]:
        named = [{"Name": "group-name", "Values": [group_name(run_id)]}]
        return [one["GroupId"] for one in ec2.describe_security_groups(Filters=named)["SecurityGroups"]]

    # --- find, destroy ---

    def find(self, run_id: str | None = None) -> Sequence[Instance]:
        regions = self._regions(run_id)
        with ThreadPoolExecutor(min(8, len(regions))) as pool:
            found = pool.map(lambda region: self._find_in(region, run_id), regions)
        return [one for listed in found for one in listed]

    def _regions(self, run_id: str | None) -> list[str]:
        """Of a run whose ledger is here those that it used; else every region of the account."""
        standing = ledger.Ledger(run_id).standing() if run_id else None
        used = {one.region for one in standing.machines.values() if one.provider == NAME} if standing else set()
        if used:
            return sorted(used)
        with told(self.clients.region, ""):
            answer = self.clients.ec2(self.clients.region).describe_regions()
        return sorted(one["RegionName"] for one in answer["Regions"])

    def _find_in(self, region: str, run_id: str | None) -> list[Instance]:
        filters = [
            {"Name": "instance-state-name", "Values": NOT_GONE},
            {"Name": f"tag:{TAG}", "Values": [run_id]} if run_id else {"Name": "tag-key", "Values": [TAG]},
        ]
        with told(region, ""):
            pages = self.clients.ec2(region).get_paginator("describe_instances").paginate(Filters=filters)
            told_of = [one for page in pages for group in page["Reservations"] for one in group["Instances"]]
        return [self._instance(region, one) for one in told_of]

    def destroy(self, instance: Instance) -> None:
        ec2 = self.clients.ec2(instance.region)
        with told(instance.region, instance.machine):
            _unless(_ABSENT, ec2.terminate_instances, InstanceIds=[instance.id])

    def tidy(self, run_id: str) -> None:
        """The run's security and placement groups, which cost nothing."""
        for region in self._regions(run_id):
            ec2 = self.clients.ec2(region)
            with told(region, ""):
                for group in self._groups(ec2, run_id):
                    _unless((*_ABSENT, *_IN_USE), ec2.delete_security_group, GroupId=group)
                _unless((*_ABSENT, *_IN_USE), ec2.delete_placement_group, GroupName=group_name(run_id))

    def _instance(self, region: str, answer: Mapping[str, Any]) -> Instance:
        tags = {one["Key"]: one["Value"] for one in answer.get("Tags", [])}
        why = answer.get("StateReason") or {}
        private = answer.get("PrivateIpAddress") or None
        public = answer.get("PublicIpAddress") or None
        return Instance(
            provider=NAME, id=answer["InstanceId"], name=tags.get("Name", ""), run_id=tags.get(TAG, ""),
            node=int(tags.get("dtrain-node", 0)), attempt=int(tags.get("dtrain-attempt", 1)),
            state=STATES[answer["State"]["Name"]], region=region, machine=answer["InstanceType"],
            zone=answer.get("Placement", {}).get("AvailabilityZone", ""),
            address=private if self.options.private_addresses else public, private_address=private,
            preempted=why.get("Code") in _TAKEN, reason=why.get("Message", ""),
            console=f"https://{region}.console.aws.amazon.com/ec2/home?region={region}"
            f"#InstanceDetails:instanceId={answer['InstanceId']}",
        )  # fmt: skip


def _with_zone(parameters: dict[str, Any], order: Order) -> dict[str, Any]:
    if not order.offer.zone:
        return parameters
    return {**parameters, "Placement": {**parameters.get("Placement", {}), "AvailabilityZone": order.offer.zone}}


def _unless(codes: Sequence[str], call: Any, **parameters: Any) -> Any:
    """None where AWS answers with one of these codes: it is so already."""
    from botocore.exceptions import ClientError

    try:
        return call(**parameters)
    except ClientError as error:
        if error.response["Error"].get("Code") in codes:
            return None
        raise


class AwsLauncher(CloudLauncher):
    name = NAME
    provider_class = Aws
