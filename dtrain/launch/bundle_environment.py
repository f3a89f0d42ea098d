# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Makes an environment on a machine: this file's text is sent to its `python3 -`, with where, the wheel and the extras.

Standard library only. An environment that is ready is taken as it is; a half-made one is made again; of two clients at
once one makes it and the other waits.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import venv


def main(place, wheel, extras, constraints):
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with open(place + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ready = os.path.join(place, ".ready")
        if os.path.exists(ready):
            return 0
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        command = [
            os.path.join(place, "bin", "python"),
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
        ]
        command += ["-c", constraints] if os.path.getsize(constraints) else []
        done = subprocess.run([*command, wheel + extras], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode == 0:
            open(ready, "w").close()
        else:
            print("\n".join(done.stdout.decode(errors="replace").splitlines()[-8:]))
        return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:5]))
