# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""What a machine is, asked before anything of ours is there: this file's text is sent to its `python3 -`.

Standard library only, and no syntax newer than Python 3.6: the answer must also say that its Python is too old.
"""

import json
import os
import shutil
import subprocess
import sys


def run(command):
    try:
        told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in told.stdout.decode(errors="replace").splitlines()] if told.returncode == 0 else []


def main(base):
    base = os.path.abspath(os.path.expanduser(base))
    nearest = base
    while not os.path.isdir(nearest):
        nearest = os.path.dirname(nearest)
    query = "--query-gpu=name,memory.total,driver_version"
    gpus = [line.split(", ") for line in run(["nvidia-smi", query, "--format=csv,noheader,nounits"])]
    told = {
        "base": base,
        "home": os.path.expanduser("~"),
        "python": sys.executable,
        "version": list(sys.version_info[:3]),
        "platform": sys.platform,
        "free_bytes": shutil.disk_usage(nearest).free,
        "writable": os.access(nearest, os.W_OK | os.X_OK),
        "gpus": [{"name": gpu[0], "memory_mib": gpu[1], "driver": gpu[2]} for gpu in gpus if len(gpu) == 3],
    }
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
