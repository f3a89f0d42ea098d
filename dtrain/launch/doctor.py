"""What is installed here and what is missing, with the command that brings it. Nothing heavy is imported here."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from dtrain import __version__, paths
from dtrain.errors import PartMissing
from dtrain.hardware.this_machine import cores, host_memory_gib, listed_gpus
from dtrain.launch.load import load_all
from dtrain.units import gib

LEAST_PYTHON = (3, 11)
"""pyproject.toml's requires-python."""
LITTLE_DISK_GIB = 20.0
"""Less than one checkpoint of a 1B model with its optimizer (16 bytes a parameter) and the exported model need."""
PROBE_SECONDS = 300

State = Literal["ok", "missing", "warning"]


@dataclass(frozen=True)
class Finding:
    part: str
    state: State
    found: str
    """A version, a figure, or what is wrong."""
    why: str = ""
    """What it is for."""
    fix: str | None = None
    """A command to type."""


TRAIN = "pip install 'dtrain[train]'"
PARTS = (
    ("torch", "training", TRAIN),
    ("deepspeed", "training", TRAIN),
    ("transformers", "training", TRAIN),
    ("datasets", "data that is not plain JSON, and the hub", TRAIN),
    ("bitsandbytes", "8-bit optimizers", TRAIN),
    ("peft", "adapters", TRAIN),
    ("matplotlib", "loss.png", TRAIN),
    ("flash-attn", "the fastest attention on NVIDIA cards; optional", "pip install flash-attn --no-build-isolation"),
    ("wandb", "Weights & Biases; optional", "pip install 'dtrain[wandb]'"),
)
"""Package, what needs it, what to type."""
OPTIONAL = {"flash-attn", "wandb"}


def examine(full: bool = False) -> list[Finding]:
    """Everything, in the order a person would fix it. `full` also tries torch in a process of its own (seconds)."""
    found = [_python(), Finding("dtrain", "ok", __version__), *(_package(*part) for part in PARTS), _compiler()]
    found += [*_gpus(), _host(), _disk(Path.cwd(), "this folder"), _home(), *_launchers()]
    return found + (_tried() if full else [])


def _python() -> Finding:
    told = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] >= LEAST_PYTHON:
        return Finding("python", "ok", told)
    least = ".".join(map(str, LEAST_PYTHON))
    return Finding("python", "missing", told, "everything", f"install Python {least} or newer")


def _package(name: str, why: str, fix: str) -> Finding:
    try:
        return Finding(name, "ok", version(name), why)
    except PackageNotFoundError:
        return Finding(name, "warning" if name in OPTIONAL else "missing", "not installed", why, fix)


def _compiler() -> Finding:
    why = "DeepSpeed compiles its helpers on first use"
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        place = shutil.which(name) if name else None
        if place:
            return Finding("C++ compiler", "ok", place, why)
    return Finding("C++ compiler", "missing", "none on PATH", why, "apt install g++, or set CXX")


def _gpus() -> list[Finding]:
    if shutil.which("nvidia-smi") is None:
        return [Finding("GPUs", "warning", "no nvidia-smi: training here means --profile cpu")]
    listed = listed_gpus()
    if not listed:
        return [Finding("GPUs", "warning", "nvidia-smi shows none (driver, or CUDA_VISIBLE_DEVICES)", fix="nvidia-smi")]
    return [Finding(f"GPU {one.index}", "ok", f"{one.name}, {one.memory_mib} MiB") for one in listed]


def _host() -> Finding:
    return Finding("host", "ok", f"{cores()} cores, {host_memory_gib():.1f} GiB RAM")


def _disk(folder: Path, words: str) -> Finding:
    free_gib = gib(shutil.disk_usage(folder).free)
    state: State = "ok" if free_gib >= LITTLE_DISK_GIB else "warning"
    return Finding("disk", state, f"{free_gib:.0f} GiB free in {words}", "checkpoints and the model")


def _home() -> Finding:
    """The nearest folder that exists decides: nothing is made here."""
    home = paths.home()
    nearest = next(folder for folder in (home, *home.absolute().parents) if folder.exists())
    if os.access(nearest, os.W_OK | os.X_OK):
        return Finding("dtrain's home", "ok", str(home), "the registry of runs, tokenised data")
    return Finding("dtrain's home", "missing", f"{home} cannot be written", fix="set DTRAIN_HOME to a folder of yours")


def _launchers() -> list[Finding]:
    working, broken = load_all()
    found = []
    for name, launcher in working.items():
        try:
            problems = launcher.check()
        except PartMissing as error:
            broken[name] = error
            continue
        found.append(Finding(f"launcher {name}", "warning" if problems else "ok", "; ".join(problems) or "ready"))
    return found + [
        Finding(f"launcher {name}", "warning", error.message, fix=error.fix) for name, error in broken.items()
    ]


PROBE = """
import importlib.util, json
out, doubts = {}, {}
try:
    import torch
    out["torch"] = torch.__version__ + (", CUDA " + torch.version.cuda if torch.version.cuda else ", CPU build")
    for n in range(torch.cuda.device_count()):
        ones = torch.ones(256, 256, device=n)
        torch.cuda.synchronize(n)
        assert (ones @ ones).sum().item() == 256.0 ** 3
        out["GPU %d" % n] = torch.cuda.get_device_name(n) + ", a matmul is right"
    import deepspeed
    out["deepspeed"] = deepspeed.__version__
    import transformers
    out["transformers"] = transformers.__version__
    if importlib.util.find_spec("flash_attn"):
        try:
            from flash_attn import flash_attn_varlen_func
            out["flash-attn"] = "loads"
        except Exception as error:
            doubts["flash-attn"] = "cannot be loaded: " + str(error).split("\\n")[0]
except Exception as error:
    out["error"] = type(error).__name__ + ": " + str(error)
print("\\n" + json.dumps([out, doubts]))
"""


def _tried() -> list[Finding]:
    """torch, each GPU and DeepSpeed really used, in another process: a broken driver may crash it."""
    try:
        told = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS)
        tried, doubts = json.loads(told.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return [Finding("torch, tried", "missing", f"no answer within {PROBE_SECONDS} s")]
    except (ValueError, IndexError):
        words = (told.stderr.strip().splitlines() or ["no words"])[-1]
        return [Finding("torch, tried", "missing", f"ended with exit code {told.returncode}: {words}")]
    broken = [Finding("torch, tried", "missing", tried.pop("error"))] if "error" in tried else []
    fixes = {name: fix for name, _, fix in PARTS}
    found = [Finding(f"{name}, tried", "ok", words) for name, words in tried.items()]
    found += [Finding(f"{name}, tried", "warning", words, fix=fixes[name]) for name, words in doubts.items()]
    return found + broken
