"""Run by another interpreter, one that has Vast's own Python client: it uses the server of ours as a person would.

VAST_URL says where, the first argument whose key.
"""

from __future__ import annotations

import sys

from vastai import VastAI  # type: ignore[import-not-found]
from vastai.data.instance import CreateInstanceResponse, Instance  # type: ignore[import-not-found]
from vastai.data.offer import Offer  # type: ignore[import-not-found]


def main(key: str) -> None:
    client = VastAI(api_key=key)
    told = client.search_offers(query="gpu_name=H100_SXM num_gpus=1 reliability>0.9", order="dph_total", limit=5)
    offers = [Offer.from_dict(one) for one in told]
    assert [offer.id for offer in offers] == [12, 11], offers
    created = CreateInstanceResponse.from_dict(
        client.create_instance(id=11, image="ubuntu", disk=20, label="theirs", onstart_cmd="true", ssh=True)
    )
    for _ in range(4):
        rows = [Instance.from_dict(row) for row in client.show_instances()]
    (mine,) = [row for row in rows if row.label == "theirs"]
    assert (mine.id, mine.actual_status) == (created.new_contract, "running"), mine
    assert client.destroy_instance(id=mine.id)["success"]
    print("read every answer")


if __name__ == "__main__":
    main(sys.argv[1])
