"""Run by another interpreter, one that has RunPod's own Python client: it uses the server of ours as a person would.

RUNPOD_API_BASE_URL and RUNPOD_API_KEY say where and whose.
"""

from __future__ import annotations

import os

import runpod  # type: ignore[import-not-found]


def main() -> None:
    runpod.api_key = os.environ["RUNPOD_API_KEY"]
    cards = {card["id"] for card in runpod.get_gpus()}
    assert "NVIDIA H100 80GB HBM3" in cards, cards
    assert runpod.get_gpu("NVIDIA H100 80GB HBM3", 2)["maxGpuCount"] == 8
    seen = {pod["name"]: pod for pod in runpod.get_pods()}
    assert "NVIDIA" not in str(seen.get("dtrain-run-n0-a1", {}).get("env")), "no secret, no card in its environment"
    made = runpod.create_pod("theirs", "runpod/pytorch", "NVIDIA H100 80GB HBM3", ports="22/tcp", env={"A": "1"})
    pod = runpod.get_pod(made["id"])
    assert pod["name"] == "theirs", pod
    runpod.stop_pod(made["id"])
    assert runpod.get_pod(made["id"])["desiredStatus"] == "EXITED"
    runpod.terminate_pod(made["id"])
    try:
        runpod.terminate_pod(made["id"])
    except runpod.error.QueryError as error:
        print("read every answer:", error)


if __name__ == "__main__":
    main()
