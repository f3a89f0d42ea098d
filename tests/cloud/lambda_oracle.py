"""Run by another interpreter, one that has `lambda-ai-cloud-api-client`: an independent client uses the server of ours
for everything that dtrain uses Lambda for, and reads every answer with its own types.

    python lambda_oracle.py URL KEY
"""

from __future__ import annotations

import sys
from typing import Any

from lambda_ai_cloud_api_client.api.instances import (
    launch_instance,
    list_instance_types,
    list_instances,
    terminate_instance,
)
from lambda_ai_cloud_api_client.api.ssh_keys import add_ssh_key, delete_ssh_key, list_ssh_keys
from lambda_ai_cloud_api_client.client import AuthenticatedClient
from lambda_ai_cloud_api_client.models import AddSSHKeyRequest, InstanceLaunchRequest, InstanceTerminateRequest


def parsed(answer: Any) -> Any:
    assert answer.status_code == 200, answer
    assert answer.parsed is not None, answer
    return answer.parsed.data


def main(url: str, key: str) -> None:
    client = AuthenticatedClient(base_url=url, token=key)
    types = parsed(list_instance_types.sync_detailed(client=client))
    assert types["gpu_8x_h100_sxm5"].instance_type.price_cents_per_hour == 3192
    new = AddSSHKeyRequest(name="mine", public_key="ssh-ed25519 AAAA")
    number = parsed(add_ssh_key.sync_detailed(client=client, body=new)).id
    assert [one.name for one in parsed(list_ssh_keys.sync_detailed(client=client))] == ["mine"]
    order = InstanceLaunchRequest.from_dict({
        "region_name": "us-west-1", "instance_type_name": "gpu_1x_h100_pcie", "ssh_key_names": ["mine"],
        "name": "machine", "tags": [{"key": "dtrain", "value": "run"}],
    })  # fmt: skip
    (machine,) = parsed(launch_instance.sync_detailed(client=client, body=order)).instance_ids
    states = []
    for _ in range(4):
        (seen,) = parsed(list_instances.sync_detailed(client=client))
        states.append((seen.status.value, bool(seen.ip)))
    assert states == [("booting", False), ("active", False), ("active", True), ("active", True)], states
    end = InstanceTerminateRequest(instance_ids=[machine])
    (ended,) = parsed(terminate_instance.sync_detailed(client=client, body=end)).terminated_instances
    assert ended.status.value == "terminating"
    parsed(delete_ssh_key.sync_detailed(client=client, id=number))
    refused = terminate_instance.sync_detailed(client=client, body=InstanceTerminateRequest(instance_ids=["none"]))
    assert (refused.status_code, refused.parsed.error.code) == (404, "global/object-does-not-exist"), refused
    print("read every answer")


if __name__ == "__main__":
    main(*sys.argv[1:])
