"""The run's own keys: one pair to log in with, one for the machines to show. Made for the run, removed after it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dtrain.cloud import ledger


@dataclass(frozen=True)
class RunKeys:
    """ed25519, in OpenSSH's form."""

    login_file: Path
    """The private key to log in with; it never leaves this machine."""
    login_public: str
    host_private: str
    """What user data puts into the machine."""
    host_public: str


def folder(run_id: str) -> Path:
    return ledger.folder() / run_id


def keys_of(run_id: str) -> RunKeys | None:
    """None: they were never made here, or the run is over."""
    place = folder(run_id)
    try:
        told = [(place / name).read_text() for name in ("id.pub", "host", "host.pub")]
    except FileNotFoundError:
        return None
    return RunKeys(place / "id", told[0].strip(), told[1], told[2].strip())


def make_keys(run_id: str) -> RunKeys:
    """New ones, or those that are there: a run keeps its keys over its machines."""
    known = keys_of(run_id)
    if known is not None:
        return known
    place = folder(run_id)
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("host", "id"):
        private, public = _new_pair()
        _write_private(place / name, private)
        (place / f"{name}.pub").write_text(f"{public}\n")
    made = keys_of(run_id)
    assert made is not None
    return made


def remove_keys(run_id: str) -> None:
    shutil.rmtree(folder(run_id), ignore_errors=True)


def _new_pair() -> tuple[str, str]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
