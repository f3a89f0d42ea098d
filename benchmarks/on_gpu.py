"""Real runs on one card, their peaks beside the plan: `python -m benchmarks.on_gpu [--only NAME …] [--out FILE]`.

Each layout is a whole `dtrain launch` of three steps at full windows, on a model with random weights. Peaks are what
torch allocated and reserved, and what nvidia-smi showed for the rank. Without a GPU the same layouts run on one CPU
rank with a tiny model, so that this file is no dead code: live tensor bytes then stand for allocated, and nothing is
said about a GPU. `--tests` runs the tests that need a GPU first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from dtrain.models.hub import load_facts
from dtrain.planner.plan import versions

ROOT = Path(__file__).resolve().parents[1]
MODELS = {"small": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "large": "meta-llama/Llama-3.1-8B"}
STEPS = 3
ROWS = 24
CPU_WINDOW = 64
RUN_SECONDS = 600


@dataclass(frozen=True)
class Layout:
    name: str
    model: str
    """A key of MODELS; on a CPU both are the same tiny Llama."""
    window: int
    said: Mapping[str, Any]


def _full(name: str, window: int = 2048, **said: Any) -> Layout:
    return Layout(f"full {name}", "small", window, MappingProxyType(said))


def _lora(name: str, window: int = 4096, **said: Any) -> Layout:
    usual = {"adapter": "lora", "lora_r": 16, "lora_target_linear": True, "gradient_checkpointing": "full"}
    return Layout(f"lora {name}", "large", window, MappingProxyType(usual | said))


def _qlora(name: str, window: int = 4096, **said: Any) -> Layout:
    usual = {"adapter": "qlora", "load_in_4bit": True, "zero_stage": 2}
    return Layout(f"qlora {name}", "large", window, _lora("", window, **(usual | said)).said)


LAYOUTS: tuple[Layout, ...] = (
    *(
        _full(name, zero_stage=2, gradient_checkpointing="none", **said)
        for name, said in (("fp32", {"bf16": False}), ("bf16", {"bf16": True}))
    ),
    *(_full(f"zero{stage}", zero_stage=stage, gradient_checkpointing="none") for stage in (1, 2, 3)),
    *(
        _full(f"zero2 {kind} {window}", window, zero_stage=2, gradient_checkpointing=kind)
        for kind in ("full", "selective", "offload")
        for window in (2048, 16384)
    ),
    *(
        _full(f"packed {window}", window, zero_stage=2, sample_packing=True, gradient_checkpointing="full")
        for window in (1024, 4096, 16384, 65536)
    ),
    _full("packed 65536 offload tiled", 65536, zero_stage=2, sample_packing=True, gradient_checkpointing="offload",
          tiled_mlp=True),
    _full("8-bit adam", zero_stage=2, optimizer="adamw_bnb_8bit", gradient_checkpointing="full"),
    _full("paged 8-bit adam", zero_stage=2, optimizer="paged_adamw_8bit", gradient_checkpointing="full"),
    _full("8-bit lion", zero_stage=2, optimizer="lion_8bit", gradient_checkpointing="full"),
    _full("optimizer on the host", zero_stage=2, offload_optimizer="cpu", gradient_checkpointing="full"),
    _full("all on the host", zero_stage=3, offload_optimizer="cpu", offload_params="cpu"),
    _full("eager loss", zero_stage=2, cross_entropy="eager", gradient_checkpointing="full"),
    _full("micro-batch 4", zero_stage=2, micro_batch_size=4, gradient_checkpointing="full"),
    _lora("zero2", zero_stage=2),
    _lora("zero3", zero_stage=3),
    _lora("dora", zero_stage=2, peft_use_dora=True),
    _lora("int8", zero_stage=2, load_in_8bit=True),
    _lora("32768 offload tiled", 32768, zero_stage=2, gradient_checkpointing="offload", tiled_mlp=True),
    _lora("131072 offload tiled", 131072, zero_stage=2, gradient_checkpointing="offload", tiled_mlp=True),
    _qlora("nf4"),
    _qlora("fp4", bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=False),
    _qlora("nf4 32768", 32768, gradient_checkpointing="offload"),
)  # fmt: skip


@dataclass(frozen=True)
class Device:
    name: str
    is_gpu: bool


def this_device() -> Device:
    import torch

    gpu = torch.cuda.is_available()
    return Device(torch.cuda.get_device_name(0) if gpu else "cpu (tiny model)", gpu)


# --- a model, its tokenizer and its rows --------------------------------------------------------------------------


def write_model(folder: Path, model: str, device: Device, window: int) -> None:
    """Random weights in bf16 (fp32 on a CPU), one token a byte."""
    import torch
    import transformers

    described = _described(model, device)
    described["max_position_embeddings"] = max(window, described.get("max_position_embeddings", 0))
    config = transformers.AutoConfig.for_model(**described)
    dtype = torch.bfloat16 if device.is_gpu else torch.float32
    transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    _byte_tokenizer().save_pretrained(folder)


def _described(model: str, device: Device) -> dict[str, Any]:
    if device.is_gpu:
        facts = load_facts(MODELS[model], revision=None, config_dir=None)
        return {**facts.config, "model_type": facts.family}
    return {
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    }  # fmt: skip


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1} | {letter: index for index, letter in enumerate(letters, start=2)}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, pad_token="<pad>", eos_token="</s>")


def write_run(folder: Path, layout: Layout, window: int) -> Path:
    """Its YAML and its rows, each of a full window with the end-of-text token."""
    with (folder / "rows.jsonl").open("w") as rows:
        for row in range(ROWS):
            rows.write(json.dumps({"text": chr(97 + row) * (window - 1)}) + "\n")
    said = {
        "base_model": str(folder / "model"), "datasets": [{"path": str(folder / "rows.jsonl"), "type": "completion"}],
        "sequence_len": window, "micro_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": STEPS,
        "learning_rate": 1e-5, "output_dir": str(folder / "out"), "save_every": "end", **layout.said,
    }  # fmt: skip
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(said))
    return file


# --- one run ------------------------------------------------------------------------------------------------------


@contextmanager
def smi_watched(is_gpu: bool) -> Iterator[list[float]]:
    """The most GiB nvidia-smi shows for all processes on the card, looked at twice a second; empty without a GPU."""
    seen: list[float] = []
    over = threading.Event()

    def look() -> None:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
        while not over.wait(0.5):
            said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
            seen.extend(float(number) / 1024 for number in said[:1])

    watcher = threading.Thread(target=look, daemon=True)
    if is_gpu:
        watcher.start()
    try:
        yield seen
    finally:
        over.set()


def measured(layout: Layout, device: Device) -> dict[str, Any]:
    """The plan's peaks and the run's, GiB; or why it did not end well."""
    window = layout.window if device.is_gpu else CPU_WINDOW
    told = {"name": layout.name, "model": MODELS[layout.model] if device.is_gpu else "tiny", "window": window}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_model(folder / "model", layout.model, device, window)
        file = write_run(folder, layout, window)
        profile = "auto" if device.is_gpu else "cpux1"
        command = [sys.executable, "-m", "dtrain", "launch", str(file), "--profile", profile, "--yes"]
        environment = os.environ | {"DTRAIN_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
        with smi_watched(device.is_gpu) as seen:
            ran = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
            )
        if ran.returncode != 0:
            return told | {
                "said": dict(layout.said),
                "exit_code": ran.returncode,
                "error": (ran.stderr or ran.stdout)[-600:],
            }
        run = folder / "out" / "dtrain"
        plan, report = (json.loads((run / name).read_text()) for name in ("plan.json", "report.json"))
        attention = [line for line in (run / "logs" / "rank-0.log").read_text().splitlines() if "attention:" in line]
    return told | {"said": dict(layout.said), "exit_code": 0, "attention": attention[0], **beside(plan, report, seen)}


def beside(plan: Mapping[str, Any], report: Mapping[str, Any], smi: list[float]) -> dict[str, Any]:
    memory, found = plan["memory_gib"], report["measured"]
    pairs = {
        "allocated": (memory["peak_allocated"], found["peak_allocated_gib"]),
        "reserved": (memory["peak_reserved"], found["peak_reserved_gib"]),
        "smi": (memory["peak_smi"], max(smi, default=None)),
        "step_seconds": (plan["throughput"]["step_seconds"], found["step_seconds"]),
    }
    return {
        name: {"planned": planned, "measured": real, "error": planned / real - 1 if real else None}
        for name, (planned, real) in pairs.items()
    }


def line(one: Mapping[str, Any]) -> str:
    if one["exit_code"] != 0:
        return f"{one['name']:34} exit code {one['exit_code']}: {one['error'].strip().splitlines()[-1:]}"
    told = (f"{name} {one[name]['measured']:.3f} ({one[name]['error']:+.1%})" for name in ("allocated", "reserved"))
    return f"{one['name']:34} {'  '.join(told)} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="names of layouts, or parts of them")
    parser.add_argument("--tests", action="store_true", help="run the tests marked gpu first")
    parser.add_argument("--out", type=Path, help="JSON; default with a GPU: tests/measured/on_gpu.json")
    told = parser.parse_args()
    device = this_device()
    tests = None
    if told.tests:
        tests = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"], cwd=ROOT, check=False
        ).returncode
    print(f"on {device.name}")
    chosen = [one for one in LAYOUTS if not told.only or any(part in one.name for part in told.only)]
    rows = []
    for layout in chosen:
        rows.append(measured(layout, device))
        print(line(rows[-1]), flush=True)
    out = told.out or (ROOT / "tests" / "measured" / "on_gpu.json" if device.is_gpu else None)
    if out:
        document = {
            "schema_version": 1, "date": time.strftime("%Y-%m-%d"), "device": asdict(device), "versions": versions(),
            "load": os.getloadavg()[0], "gpu_tests_exit_code": tests, "rows": rows,
        }  # fmt: skip
        out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
