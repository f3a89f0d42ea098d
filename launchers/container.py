"""A container that is rented like a machine: what it runs first, since it has no cloud-init and no power switch.

`shutdown` becomes a program that ends the rental through the provider's API, with the key that the provider itself
puts into the container and that may do nothing else. So the timer of `Order.user_data` is a dead-man switch here, too,
and the client's own key never lies on somebody's machine.
"""

from __future__ import annotations

import base64
import gzip
import re

from dtrain.cloud.provider import Abilities, Order

ABILITIES = Abilities(
    idempotent_create=False, server_side_limit=False, shutdown_ends_billing=True, runs_user_data=False, spot=True,
    several_nodes=False,
)  # fmt: skip
"""Of who rents containers: no order has a token, and `shutdown` is the program below."""
IMAGE = "runpod/pytorch:2.8.0-py3.11-cuda12.8.1-cudnn-devel-ubuntu22.04"
"""RunPod's own, public: sshd, a `python3` that is new enough for who logs in, nvcc for DeepSpeed's kernels; dtrain
brings its own torch."""
SHUTDOWN = """\
#!/usr/bin/env python3
# dtrain: ends this container's rental; tried until it is gone.
import json, os, pathlib, time, urllib.request

seen = dict(os.environ)
if {key!r} not in seen:  # logged in over SSH: what the container itself was started with
    pairs = pathlib.Path("/proc/1/environ").read_bytes().decode(errors="replace").split(chr(0))
    seen.update(pair.split("=", 1) for pair in pairs if "=" in pair)
url = {url}
body = json.dumps({body}).encode()
head = {{"Authorization": "Bearer " + seen[{key!r}], "Content-Type": "application/json", "User-Agent": "dtrain"}}
while True:
    try:
        urllib.request.urlopen(urllib.request.Request(url, body, head, method={method!r}), timeout=30).read()
    except Exception as error:
        print("dtrain: cannot end this rental yet:", error, flush=True)
    time.sleep(20)
"""
BOOT = """\
#!/bin/sh
cat > /usr/local/sbin/shutdown <<'DTRAIN_SHUTDOWN'
{shutdown}DTRAIN_SHUTDOWN
chmod 755 /usr/local/sbin/shutdown
export PATH="/usr/local/sbin:$PATH"
umask 077
cat > /root/dtrain-boot <<'DTRAIN_BOOT'
{user_data}
DTRAIN_BOOT
sh /root/dtrain-boot
rm -f /root/dtrain-boot
"""
_NAME = re.compile(r"dtrain-(?P<run>.+)-n(?P<node>\d+)-a(?P<attempt>\d+)")


def shutdown_program(method: str, url: str, body: str, key: str) -> str:
    """`url` and `body` are Python expressions in which `seen` is the container's environment; `key`: its variable."""
    return SHUTDOWN.format(method=method, url=url, body=body, key=key)


def boot_command(order: Order, shutdown: str) -> str:
    """One line for a shell: short, as providers cut long ones, and the same for the same order."""
    script = BOOT.format(shutdown=shutdown, user_data=order.user_data.rstrip("\n"))
    packed = base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()
    return f"echo {packed} | base64 -d | gunzip | sh"


def named(name: str | None) -> tuple[str, int, int] | None:
    """Run, node and attempt of `Order.name`; None for what is not ours."""
    found = _NAME.fullmatch(name or "")
    return (found["run"], int(found["node"]), int(found["attempt"])) if found else None
