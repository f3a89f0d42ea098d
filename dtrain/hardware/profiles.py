"""A machine by name: `a100x8`, `a100-40gbx8`, `h100x8x4`, `4090x1`, `cpu`, `auto`, or the user's own YAML."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from dtrain.errors import BadInput
from dtrain.hardware.auto import here
from dtrain.hardware.build import CPU_RANKS, GRAMMAR, Profile, cpu_profile, gpu_profile, malformed, refuse_if_too_old
from dtrain.hardware.gpus import BY_NAME, GPUS, Gpu, shortest
from dtrain.hardware.machines import largest_usual
from dtrain.hardware.own_file import read_profile
from dtrain.hardware.this_machine import listed_gpus

__all__ = ["Profile", "profile_names", "resolve_profile"]

_MAKERS = re.compile(r"^(nvidia|amd)?[ _-]?(geforce|tesla|instinct)?[ _-]?(rtx|gtx)?[ _-]?(?=[a-z0-9])")


def resolve_profile(said: str) -> Profile:
    """The machine that `--profile` names. Raises BadInput for unknown cards, malformed counts and wrong files.

    `auto` asks nvidia-smi; CPU profiles read this machine's memory; a YAML file is read; the rest is a pure look-up.
    """
    word = said.strip()
    if looks_like_path(word):
        return read_profile(Path(word).expanduser())
    name = word.lower()
    if name == "auto":
        return here(listed_gpus())
    card, counts = _split(name, said)
    if card == "cpu":
        return cpu_profile(name, *(counts or (CPU_RANKS,)), said=said)
    gpu = find_gpu(card, said)
    return gpu_profile(gpu, *(counts or (1,)), name=name if counts else f"{name}x1", said=said)


def profile_names() -> list[str]:
    """Names to start from: each supported card in its largest usual machine, and `cpu`."""
    cards = [gpu for gpu in GPUS.values() if gpu.support != "refused"]
    return [f"{shortest(gpu)}x{largest_usual(gpu.name)}" for gpu in cards] + ["cpu"]


def looks_like_path(word: str) -> bool:
    return "/" in word or word.lower().endswith((".yaml", ".yml"))


def find_gpu(card: str, said: str) -> Gpu:
    """The card of a lower-case name, with or without its maker (`rtx4090`). Refused cards raise with what to take."""
    plain = re.sub(r"[ _]", "-", _MAKERS.sub("", card))
    gpu = BY_NAME.get(plain)
    if gpu is None:
        raise _unknown(plain, said)
    refuse_if_too_old(gpu, said)
    return gpu


def _unknown(card: str, said: str) -> BadInput:
    kind = re.sub(r"-?\d+gb$", "", card)
    sizes = sorted({name for name in BY_NAME if re.fullmatch(rf"{re.escape(kind)}-\d+gb", name)})
    if sizes and kind != card:
        return BadInput(
            f"no {kind} has that memory",
            key="--profile",
            value=said,
            allowed=", ".join(sizes),
            fix=f"--profile {sizes[-1]}x8",
        )
    near = difflib.get_close_matches(card, [*BY_NAME, "cpu", "auto"], n=1, cutoff=0.5)
    return BadInput(
        "unknown profile",
        key="--profile",
        value=said,
        allowed=f"{GRAMMAR}; cards: {', '.join(map(shortest, GPUS.values()))}",
        fix=(f"did you mean {near[0]}? " if near else "")
        + "`dtrain profiles` lists them; your own machine goes in a YAML",
    )


def _split(name: str, said: str) -> tuple[str, tuple[int, ...]]:
    """`h100x8x4` → (`h100`, (8, 4)). The x of RTX and of MI300X belong to the card."""
    plain = re.sub(r"^mi300x(?=x|$)", "mi300", _MAKERS.sub("", name))
    card, *counts = plain.split("x")
    if len(counts) > 2 or not all(count.isdecimal() and count.isascii() for count in counts):
        if card not in BY_NAME and card != "cpu":
            raise _unknown(plain, said)
        raise malformed(said, "this is no count of GPUs and nodes")
    return card, tuple(int(count[:9]) for count in counts)
