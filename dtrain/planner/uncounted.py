"""A model without a closed form here: the trace counts transformers' own, ZeRO's states are arithmetic on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dtrain.config.origins import Loaded
from dtrain.errors import BadInput, RunFailed
from dtrain.hardware.profiles import Profile
from dtrain.planner.choose import HEADROOM
from dtrain.planner.memory import outside_torch_gib
from dtrain.planner.pins import precision_of
from dtrain.planner.pools import FRAGMENTATION
from dtrain.planner.setup import CHUNK_TOKENS, DTYPE_BYTES, Dtype
from dtrain.planner.trace import counted_alone
from dtrain.units import GIB

STAGES = (1, 2, 3)
MASTER_AND_MOMENTS_BYTES = 12
ACCUMULATED_GRADIENT_BYTES = 4


@dataclass(frozen=True)
class Uncounted:
    """What is known of it. GiB of one GPU."""

    name: str
    family: str
    profile: Profile
    parameters: int
    precision: str
    micro_batch_size: int
    sequence_len: int
    traced: Mapping[str, float]
    """Kept from forward to backward, and the peaks of loss and backward, beside the weights."""
    by_stage: Mapping[int, float]
    """nvidia-smi's figure under each ZeRO stage: 16-bit weights, fp32 sums, masters, AdamW's moments, and the peak."""

    def fits(self, stage: int) -> bool:
        return self.by_stage[stage] <= (1 - HEADROOM) * self.profile.gpu.memory_gib

    def as_json(self) -> dict[str, Any]:
        stages = [{"zero_stage": one, "peak_gib": gib, "fits": self.fits(one)} for one, gib in self.by_stage.items()]
        return {
            "schema_version": 1,
            "warnings": [self.words],
            "model": {"name": self.name, "family": self.family, "parameters": self.parameters},
            "profile": {"name": self.profile.name, "gpus": self.profile.gpus},
            "choice": {"micro_batch_size": self.micro_batch_size, "sequence_len": self.sequence_len},
            "trace": dict(self.traced),
            "stages": stages,
        }

    @property
    def words(self) -> str:
        return (
            f"dtrain has no closed form for {self.family}: these figures are transformers' own model, counted on fake "
            "tensors; speed, cost and offloading are not planned, and launch cannot start it"
        )


def count_alone(loaded: Loaded, profile: Profile, config: Mapping[str, Any]) -> Uncounted:
    """Trace one micro-batch of full windows. BadInput where transformers does not know the model either."""
    said = loaded.config
    micro = said.micro_batch_size if said.micro_batch_size != "auto" else 1
    precision = precision_of(loaded, profile)
    compute: Dtype = "fp32" if precision == "tf32" else precision
    family = str(config.get("model_type"))
    spec = {
        "config": dict(config), "dtype": compute, "attention": "sdpa",
        "checkpointing": "full" if said.gradient_checkpointing == "auto" else said.gradient_checkpointing,
        "tiled_mlp": said.tiled_mlp, "cross_entropy": "eager" if said.cross_entropy == "eager" else "chunked",
        "chunks": -(-micro * said.sequence_len // CHUNK_TOKENS), "rows": micro, "sequence_len": said.sequence_len,
        "sequence_parallel_size": 1, "trained_share": 1.0,
    }  # fmt: skip
    try:
        counted = counted_alone(spec)
    except RunFailed as failed:
        raise BadInput(
            f"neither dtrain nor the transformers that is installed can count this model: {failed.message[:200]}",
            key="model_type", value=family, fix="choose another base_model",
        ) from failed  # fmt: skip
    parameters = round(counted["weights"] / DTYPE_BYTES[compute])
    traced = {name: counted[name] / GIB for name in ("kept", "loss_peak", "backward_peak")}
    step = max(traced.values())
    by_stage = {stage: _smi_gib(profile, states_bytes(parameters, stage, profile.gpus), step) for stage in STAGES}
    return Uncounted(
        said.base_model, family, profile, parameters, precision, micro, said.sequence_len, traced, by_stage
    )


def states_bytes(parameters: int, stage: int, ranks: int) -> float:
    """Of one rank, DeepSpeed's in 16 bits: weights, summed gradients, masters and moments."""
    weights = 2 * parameters / (ranks if stage == 3 else 1)
    gradients = ACCUMULATED_GRADIENT_BYTES * parameters / (ranks if stage >= 2 else 1)
    return weights + gradients + MASTER_AND_MOMENTS_BYTES * parameters / ranks


def _smi_gib(profile: Profile, states: float, step_gib: float) -> float:
    return FRAGMENTATION * (states / GIB + step_gib) + outside_torch_gib(profile)
