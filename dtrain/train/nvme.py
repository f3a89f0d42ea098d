"""Optimizer states and parameters on a drive (ZeRO-Infinity, arXiv 2104.07857), through DeepSpeed's asynchronous I/O.

Between steps a swapped tensor of DeepSpeed's has no memory: its numbers lie in a file. We map these files into memory
where a checkpoint is written or read, so that a save streams from one file to another, and nothing else need know.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtrain.config.schema import Config
from dtrain.errors import BadInput, PartMissing
from dtrain.planner import nvme as planned
from dtrain.planner.choice import Choice
from dtrain.train.ranks import Ranks
from dtrain.units import GIB


def folder_of(config: Config, output: Path) -> Path:
    """Of one run: two runs on one drive must not share it."""
    assert config.nvme_path is not None
    return Path(config.nvme_path).expanduser() / f"dtrain-{sha256(str(output).encode()).hexdigest()[:12]}"


def section(config: Config, choice: Choice, output: Path, world: int) -> dict[str, Any]:
    """What DeepSpeed's config says of the drive; nothing where none is used.

    Without prefetching of parameters: a head that the loss uses as well is then fetched twice, and DeepSpeed 0.19.8
    fails ("already assigned swap buffer").
    """
    if not planned.asked(config):
        return {}
    place: dict[str, Any] = {"device": "nvme", "nvme_path": str(folder_of(config, output))}
    zero: dict[str, Any] = {}
    if choice.offload_optimizer == "nvme":
        buffers = {"buffer_count": planned.STATE_BUFFERS}
        zero |= {"sub_group_size": planned.SUB_GROUP_ELEMENTS, "offload_optimizer": place | buffers}
    if choice.offload_params == "nvme":
        part = -(-largest_parameter(config) // world)
        buffers = {"buffer_count": planned.PARAMETER_BUFFERS, "buffer_size": part, "max_in_cpu": 0}
        zero |= {"stage3_prefetch_bucket_size": 0, "offload_param": place | buffers}
    return {"zero_optimization": zero}


def largest_parameter(config: Config) -> int:
    """Elements of the model's largest tensor."""
    import transformers

    from dtrain.train.model import read_config

    described = read_config(config, config.base_model)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(described, trust_remote_code=config.trust_remote_code)
    return max(int(parameter.numel()) for parameter in model.parameters())


def prepare(config: Config, folder: Path, needed_bytes: float, is_first_here: bool) -> None:
    """Before anything is loaded: DeepSpeed's part is there, and the drive is. What an earlier life left is removed.

    PartMissing without libaio, BadInput for a drive that cannot hold the run.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise PartMissing(
            "DeepSpeed's part for drives cannot be built here: it takes libaio's headers and a C compiler",
            key="nvme_path", value=config.nvme_path, fix="apt-get install libaio-dev g++, or offload to cpu",
        )  # fmt: skip
    if not is_first_here:
        return
    forget_dead_builds()
    shutil.rmtree(folder, ignore_errors=True)
    if problem := planned.drive_problem(folder, needed_bytes):
        raise BadInput(problem, key="nvme_path", value=config.nvme_path, fix="name a folder on a drive with room")
    folder.mkdir(parents=True, exist_ok=True)


BUILD_SECONDS = 900.0
"""After so long nobody builds any more: it took 280 s on four busy cores."""


def forget_dead_builds() -> None:
    """torch loads an extension under a lock file, and waits for ever for one whose owner was killed
    (torch/utils/file_baton.py): wait for who builds now, and remove what is older."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for name in ("pin_memory", "async_io"):
        for lock in (*root.glob(f"{name}/lock"), *root.glob(f"*/{name}/lock")):
            with suppress(FileNotFoundError):
                while time.time() - lock.stat().st_mtime < BUILD_SECONDS:
                    time.sleep(0.1)
                lock.unlink()


@contextmanager
def kept(ranks: Ranks, config: Config, output: Path, plan: Mapping[str, Any]) -> Iterator[None]:
    """The drive, as long as a life of the run lasts. Collective; nothing where none is used."""
    if not planned.asked(config):
        yield
        return
    folder = folder_of(config, output)
    prepare(config, folder, plan.get("nvme_gib", 0.0) * GIB, ranks.local_rank == 0)
    ranks.wait()
    try:
        yield
    finally:
        if ranks.local_rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


# --- states that lie in files -------------------------------------------------------------------------------------


class SwapFiles:
    """The files of one flat partition of DeepSpeed's."""

    def __init__(self, swapper: Any, info: Any) -> None:
        self._info = info
        self._bytes = 4 * swapper._io_aligned_numel(info.numel())
        self.numel: int = info.numel()

    def map_in(self) -> None:
        """Give DeepSpeed's own tensors their numbers, as maps of the files, until it swaps them in itself."""
        for context in self._info.tensors:
            if context.compute_tensor.numel() == 0:
                context.compute_tensor.data = self._mapped(Path(context.swap_path))

    def new(self, kind: str) -> Tensor:
        """A file for a state that the optimizer has not made yet, under the name DeepSpeed will look for."""
        return self._mapped(Path(self._info.swap_folder) / f"{kind}-{self._info.param_id}.tensor.swp")

    def _mapped(self, path: Path) -> Tensor:
        if not path.exists() or path.stat().st_size < self._bytes:
            with path.open("ab") as stream:
                os.truncate(stream.fileno(), self._bytes)
        return torch.from_file(str(path), shared=True, size=self.numel, dtype=torch.float32)


def swap_files(optimizer: Any, key: Tensor) -> SwapFiles | None:
    """Where DeepSpeed keeps a partition on a drive; None where it lies in memory (also one too small to be swapped)."""
    swapper = getattr(optimizer, "optimizer_swapper", None)
    info = None if swapper is None else swapper.swap_params_info.get(getattr(key, "ds_id", None))
    return None if info is None else SwapFiles(swapper, info)
