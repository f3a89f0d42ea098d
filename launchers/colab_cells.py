"""The cells of a Colab notebook. Each may be run again: what is there is taken as it is, and a run goes on.

Code cells are the same in every notebook; what differs stands in the first of them (`RUN`) and in the parcel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PARCEL_MARK = "@PARCEL@"
"""Where `submit` puts the packed wheel and files; a dry run shows the notebook without them."""

KEEP = """\
# Where the result is kept. On Colab: Google Drive; elsewhere: a folder here.
from pathlib import Path

HERE = Path.cwd() / "dtrain"
try:
    from google.colab import drive
except ModuleNotFoundError:
    KEPT = Path.cwd() / "kept" / RUN["drive_folder"]
else:
    drive.mount("/content/drive")
    KEPT = Path("/content/drive/MyDrive") / RUN["drive_folder"]
KEPT.mkdir(parents=True, exist_ok=True)
print(f"the result will be in {KEPT / RUN['id']}")
"""

PREFLIGHT = """\
# Is this the machine that was planned for?
import os
import shutil
import subprocess


def gpu_memory_gib():
    if shutil.which("nvidia-smi") is None:
        return []
    ask = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(ask, capture_output=True, text=True).stdout.split()
    return [float(mib) / 1024 for mib in told if mib.replace(".", "").isdigit()]


choose = f"choose Runtime → Change runtime type → {RUN['runtime']}, then Runtime → Run all"
found = gpu_memory_gib()
memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
if len(found) < RUN["gpus"]:
    raise RuntimeError(f"planned for {RUN['gpus']} × {RUN['gpu']}, and this runtime has {len(found)} GPUs: {choose}")
if RUN["gpus"] and min(found) < 0.9 * RUN["gpu_memory_gib"]:
    raise RuntimeError(f"planned for {RUN['gpu_memory_gib']:.0f} GiB, and this card has {min(found):.0f}: {choose}")
if memory_gib < RUN["host_memory_gib"]:
    raise RuntimeError(
        f"the plan needs {RUN['host_memory_gib']:.0f} GiB of host memory, and this runtime has {memory_gib:.0f}: "
        "switch on High-RAM under Runtime → Change runtime type"
    )
print("GPU memory in GiB:", [round(one, 1) for one in found], "host memory:", round(memory_gib, 1))
"""

INSTALL = """\
# dtrain and its pinned stack, in an environment of their own: Colab's own packages stay as they are.
import base64
import hashlib
import io
import sys
import venv
import zipfile

packed = base64.b64decode(PARCEL)
digest = hashlib.sha256(packed).hexdigest()
parcel = HERE / "parcels" / digest[:16]
python = HERE / "environments" / digest[:16] / "bin" / "python"
ready = python.with_name(".ready")
if not ready.exists():
    zipfile.ZipFile(io.BytesIO(packed)).extractall(parcel)
    venv.create(python.parents[1], with_pip=False, clear=True)  # Colab's Python has no ensurepip
    [wheel] = parcel.glob("*.whl")
    print("installing the pinned stack: some minutes, once for each machine", flush=True)
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "-c", str(parcel / "constraints.txt"), f"{wheel}[{RUN['extras']}]"], check=True)
    ready.touch()
print(subprocess.run([python, "-m", "dtrain", "--version"], capture_output=True, text=True).stdout.strip())
"""

TRAIN = """\
# Train. After a disconnect run all cells again: it goes on from the last checkpoint on Drive.
# Runtime → Interrupt execution lets it save and stop; a second one ends it at once.
import signal


def secret(name):
    try:
        from google.colab import userdata
    except ModuleNotFoundError:
        return os.environ.get(name)
    try:
        return userdata.get(name)
    except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
        return None


known = {name: value for name in RUN["secrets"] if (value := secret(name))}
lacking = [name for name in RUN["secrets"] if name not in known]
if lacking:
    print("not among this notebook's secrets (the key symbol at the left):", ", ".join(lacking))
train = [str(python), "-P", "-m", "dtrain_launchers.colab_session", str(parcel), str(HERE), str(KEPT)]
run = subprocess.Popen(
    train, env={**os.environ, **known}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    start_new_session=True,
)
while True:
    try:
        for line in run.stdout:
            print(line, end="", flush=True)
        break
    except KeyboardInterrupt:
        run.send_signal(signal.SIGINT)
code = run.wait()
if code:
    raise RuntimeError(f"the run ended with {code}: " + ("run this cell again to go on" if code == 75 else "see above"))
"""

RESULT = """\
# What came of it.
import json

result = KEPT / RUN["id"]
print("a Hugging Face model folder:", result)
samples = result / "dtrain" / "samples.json"
for sample in json.loads(samples.read_text()) if samples.exists() else []:
    print("", sample["prompt"], sample["text"], sep=chr(10))
"""


def notebook(title: str, words: str, run: Mapping[str, Any]) -> str:
    """The notebook as JSON (nbformat 4.5): `words` is Markdown for people, `run` what the cells read."""
    settings = f"# What differs between two runs' notebooks. No secret is in this file.\nRUN = {_literal(run)}\n"
    cells = [
        _markdown("about", f"# {title}\n\n{words}"),
        _code("settings", settings),
        _code("keep", KEEP),
        _code("preflight", PREFLIGHT),
        _code("parcel", f'#@title dtrain and your files, packed\nPARCEL = """\n{PARCEL_MARK}\n"""', hidden=True),
        _code("install", INSTALL),
        _code("train", TRAIN),
        _code("result", RESULT),
    ]
    about: dict[str, Any] = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    about["colab"] = {"name": f"{run['name']}.ipynb", "provenance": []}
    if run["gpus"]:
        about |= {"accelerator": "GPU"}
        about["colab"] |= {"gpuType": run["gpu_type"]}
    document = {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def with_parcel(text: str, packed: str) -> str:
    """The notebook with its parcel, base64 in lines (no character of it needs an escape in JSON)."""
    lines = [packed[start : start + 120] for start in range(0, len(packed), 120)]
    return text.replace(PARCEL_MARK, "\\n".join(lines))


def _literal(run: Mapping[str, Any]) -> str:
    """As Python: JSON's true, false and null do not occur in it."""
    inside = ",\n".join(f"    {key!r}: {value!r}" for key, value in run.items())
    return f"{{\n{inside},\n}}"


def _markdown(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def _code(name: str, text: str, hidden: bool = False) -> dict[str, Any]:
    about = {"cellView": "form"} if hidden else {}
    return {
        "cell_type": "code", "id": name, "metadata": about, "execution_count": None, "outputs": [],
        "source": text.rstrip("\n"),
    }  # fmt: skip
