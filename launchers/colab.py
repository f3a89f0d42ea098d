"""Colab has no launch API: a launch writes a notebook that runs the same plan there and keeps the result on Drive."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dtrain.cloud.cards import paid_row
from dtrain.errors import BadInput, LauncherRefused
from dtrain.files import write_whole
from dtrain.launch import bundle, bundle_wheel, runlogs
from dtrain.launch.api import Handle, Job, Rendered, Status
from dtrain.launch.bundle import Shipped
from dtrain.launch.digest import sha256_of
from dtrain.launch.ending import Ending, last_checkpoint
from dtrain.launch.fetch import CHUNK_BYTES, bring_home
from dtrain.paths import RunPaths
from dtrain.units import dollars, duration

from .colab_cells import notebook, with_parcel
from .colab_options import RUNTIMES, WHERE, ColabOptions, read_options

NAME = "colab"
THERE = "/content/dtrain/runs"
"""Where runs lie on Colab."""
FREE = ("t4", "cpu")
PACKED_BYTES = 8 << 20
"""Input files up to this much in all go into the notebook, so that a browser still opens it; others go over Drive."""


class ColabLauncher:
    name = NAME

    def check(self, job: Job | None = None) -> list[str]:
        """BadInput for what no Colab runtime is: only the person can take another profile."""
        if job is not None:
            _refuse_other_machines(job)
            read_options(job.options)
        return []

    def render(self, job: Job) -> Rendered:
        _refuse_other_machines(job)
        options = read_options(job.options)
        _, from_drive = _parted(job)
        text = notebook(f"{job.name} on Google Colab", _words(job, options, from_drive), _settings(job, options))
        return Rendered({str(_notebook_of(job, options)): text}, notes=_notes(job))

    def submit(self, job: Job, rendered: Rendered) -> Handle:
        """Writes the notebook: nothing runs until a person opens it."""
        options = read_options(job.options)
        [(path, text)] = rendered.files.items()
        try:
            write_whole(Path(path), with_parcel(text, base64.b64encode(_parcel(job)).decode()))
        except OSError as error:
            raise LauncherRefused(f"the notebook cannot be written: {error.strerror}", file=path) from None
        kept = f"{options.drive_folder}/{job.run_id}"
        data = {"notebook": path, "kept": kept, "drive": options.drive}
        return Handle(self.name, job.run_id, str(job.folder), data)

    def next_steps(self, handle: Handle) -> tuple[str, ...]:
        return (
            f"open {handle.data['notebook']} in Colab: File → Upload notebook",
            "Runtime → Run all; after a disconnect the same again: it goes on from the last checkpoint",
            f"the result will be on your Drive: MyDrive/{handle.data['kept']}",
        )

    def status(self, handle: Handle) -> Status:
        kept = _kept(handle)
        if kept is None:
            steps = self.next_steps(handle) if handle.data else ("the client ended before the notebook was written",)
            return Status("pending", None, "; ".join(steps))
        return _status_of(kept)

    def logs(self, handle: Handle, follow: bool) -> Iterator[str]:
        kept = _kept(handle)
        if kept is None:
            return iter((f"[launch] {_CANNOT_SEE}",))
        return runlogs.merged(kept, follow, lambda: self.status(handle).state not in ("running", "pending"))

    def cancel(self, handle: Handle) -> None:
        """Silent where the run is known to be over. LauncherRefused else: only the person can stop it."""
        if self.status(handle).state in ("running", "pending"):
            raise LauncherRefused(
                "Colab cannot be stopped from here", key="--on",
                fix="in the notebook: Runtime → Interrupt execution (it saves), then Disconnect and delete runtime",
            )  # fmt: skip

    def fetch(self, handle: Handle, checkpoints: str | None, say: Callable[[str], None]) -> tuple[int, int]:
        kept = _kept(handle)
        if kept is None:
            raise BadInput(_CANNOT_SEE, key=f"{WHERE}.drive", value=handle.run_id)
        files = _results(kept, checkpoints)
        ending = {name: files.pop(name) for name in ("dtrain/exit.json",) if name in files}
        brought = bring_home(_Folder(kept.output), files, Path(handle.folder), say)
        brought += bring_home(_Folder(kept.output), ending, Path(handle.folder), say)  # last: it says that all is here
        return brought.files, brought.brought_bytes


_CANNOT_SEE = (
    "what Colab does is not seen from here: download the run's folder from Drive, or launch with "
    "--set launchers.colab.drive=FOLDER, where Google Drive for desktop has MyDrive/dtrain"
)


class _Folder:
    """A run's folder as Drive for desktop shows it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str, offset: int) -> Iterator[bytes]:
        with (self.folder / name).open("rb") as stream:
            stream.seek(offset)
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


def _refuse_other_machines(job: Job) -> None:
    if job.nodes > 1 or (job.device == "cuda" and job.ranks_per_node > 1):
        raise BadInput(
            f"Colab gives one GPU, and the profile has {job.nodes * job.ranks_per_node}", key="--profile",
            allowed="t4x1, l4x1, a100x1, a100-40gbx1, cpu", fix="--profile t4x1, or another launcher",
        )  # fmt: skip
    if _gpu(job) not in RUNTIMES:
        raise BadInput(
            "Colab has no such machine", key="--profile", value=_gpu(job),
            allowed="t4x1, l4x1, a100x1, a100-40gbx1, cpu", fix="--profile t4x1",
        )  # fmt: skip


def _gpu(job: Job) -> str:
    return str(job.plan["profile"]["gpu"]) if job.device == "cuda" else "cpu"


def _notebook_of(job: Job, options: ColabOptions) -> Path:
    if options.notebook is None:
        return job.folder / "colab.ipynb"
    return Path(job.working_directory or ".") / Path(options.notebook).expanduser()


def _kept(handle: Handle) -> RunPaths | None:
    """The run's folder on Drive, where this machine sees Drive."""
    drive = handle.data.get("drive")
    return RunPaths(Path(drive).expanduser() / handle.run_id) if drive else None


def _status_of(kept: RunPaths) -> Status:
    ending = Ending.read(kept)
    if ending is not None:
        return Status(ending.state, ending.code, ending.reason)
    step = last_checkpoint(kept)
    known = "nothing is on Drive yet" if step is None else f"the checkpoint of step {step} is on Drive"
    return Status("pending", None, f"{known}; Runtime → Run all in the notebook begins it, or goes on")


def _results(kept: RunPaths, checkpoints: str | None) -> dict[str, dict[str, Any]]:
    """Name → bytes and sha256 of what is on Drive, but what this machine has its own of."""
    ending = Ending.read(kept)
    skipped = checkpoints == "none" or (checkpoints is None and ending is not None and ending.state == "done")
    found = {}
    for path in sorted(kept.output.rglob("*")):
        own = path in (kept.config, kept.plan, kept.about) or path.name.endswith(".part")
        if path.is_file() and not own and not (skipped and kept.checkpoints in path.parents):
            name = str(path.relative_to(kept.output))
            found[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    return found


# --- what is written ----------------------------------------------------------------------------------------------


def _documents(job: Job) -> dict[str, str]:
    config, _ = bundle.moved(job.config, f"{THERE}/{job.run_id}")
    _, from_drive = _parted(job)
    about = {
        "schema_version": 1, "id": job.run_id, "name": job.name, "launcher": "local", "profile": _profile(job),
        "folder": f"{THERE}/{job.run_id}", "created": 0.0, "nodes": 1, "ranks_per_node": job.ranks_per_node,
        "device": job.device, "working_directory": f"{THERE}/{job.run_id}", "options": {},
        "from_drive": {one.there: one.sha256 for one in from_drive},
    }  # fmt: skip
    told = {"config.yaml": config, "plan.json": dict(job.plan), "run.json": about}
    return {name: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in told.items()}


def _profile(job: Job) -> str:
    return str(job.plan["profile"]["name"])


def _parted(job: Job) -> tuple[list[Shipped], list[Shipped]]:
    """Input files that go into the notebook, smallest first, and those that must lie on Drive."""
    _, inputs = bundle.moved(job.config, "")
    packed: list[Shipped] = []
    others: list[Shipped] = []
    for one in sorted(bundle.shipped(inputs), key=lambda one: (one.size_bytes, one.there)):
        fits = sum(other.size_bytes for other in packed) + one.size_bytes <= PACKED_BYTES
        (packed if fits else others).append(one)
    return packed, others


def _parcel(job: Job) -> bytes:
    """A zip of dtrain's wheel, the pins, the run's documents and its small inputs: the same bytes each time."""
    wheel = bundle_wheel.wheel()
    held = {wheel.name: wheel.read_bytes(), "constraints.txt": bundle_wheel.constraints().encode()}
    held |= {f"run/{name}": text.encode() for name, text in _documents(job).items()}
    held |= {one.there: one.local.read_bytes() for one in _parted(job)[0]}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in held.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _settings(job: Job, options: ColabOptions) -> dict[str, Any]:
    """What the cells read."""
    gpu, runtime = _gpu(job), RUNTIMES[_gpu(job)]
    return {
        "id": job.run_id,
        "name": job.name,
        "profile": _profile(job),
        "runtime": runtime.name,
        "gpu_type": runtime.gpu_type,
        "gpu": gpu,
        "gpus": job.ranks_per_node if job.device == "cuda" else 0,
        "gpu_memory_gib": job.plan["profile"].get("capacity_gib") or 0.0,
        "host_memory_gib": job.plan.get("host_memory_gib") or 0.0,
        "drive_folder": options.drive_folder,
        "secrets": list(options.secrets),
        "extras": "train,wandb" if job.config.get("wandb_project") else "train",
    }


def _words(job: Job, options: ColabOptions, from_drive: list[Shipped]) -> str:
    """The notebook's first cell, for a person who sees only this."""
    plan, runtime = job.plan, RUNTIMES[_gpu(job)]
    about = [
        ("model", f"{plan['model']['name']}, {plan['model']['parameters'] / 1e6:,.1f} million parameters"),
        ("machine", f"{runtime.name} ({_profile(job)})"),
        ("memory", f"{plan['memory_gib']['peak']:.1f} GiB at its peak"),
        ("steps", f"{plan['schedule']['steps']:,}"),
        ("time", f"{duration(plan['hours'] * 3600)}, and some minutes to install"),
        ("price", _price(job)),
    ]
    table = "\n".join(f"| {name} | {told} |" for name, told in about)
    steps = [
        f"Runtime → Change runtime type → **{runtime.name}**",
        "Runtime → **Run all**, and allow it to use your Drive",
        "After a disconnect: Run all again. It goes on from the last checkpoint",
        f"The model is then on your Drive: `MyDrive/{options.drive_folder}/{job.run_id}`",
    ]
    steps[1:1] = [
        f"Upload `{one.local.name}` ({one.size_bytes:,} bytes) as `MyDrive/{options.drive_folder}/{one.there}`"
        for one in from_drive
    ]
    listed_steps = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
    return f"Written by dtrain. The plan it runs:\n\n| | |\n|---|---|\n{table}\n\n{listed_steps}\n"


def _price(job: Job) -> str:
    gpu = _gpu(job)
    paid = paid_row(NAME, gpu)
    words = ["free while Colab gives it; a free session ends without notice"] if gpu in FREE else []
    if paid is not None:
        usd = paid.usd_per_hour * float(job.plan["hours"])
        words.append(
            f"{paid.machine}: {dollars(usd)} for the plan's hours (priced {paid.priced_on}; from your Colab plan)"
        )
    return "; ".join(words) or "compute units of your Colab plan; their price for this card is not in the table"


def _notes(job: Job) -> tuple[str, ...]:
    packed, others = _parted(job)
    lines = ["in place of @PARCEL@: dtrain's wheel, constraints.txt, the run's config.yaml, plan.json and run.json"]
    lines += [f"packed, too: {one.local} ({one.size_bytes:,} bytes, sha256 {one.sha256[:12]}…)" for one in packed]
    lines += [f"too large to pack, to be uploaded to Drive: {one.local} ({one.size_bytes:,} bytes)" for one in others]
    lines.append(f"price: {_price(job)}")
    return tuple(lines)
