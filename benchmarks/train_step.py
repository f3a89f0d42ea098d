"""A training step of dtrain beside a bare loop and TRL: `python -m benchmarks.train_step [--out FILE]`.

The same Llama, the same tokens, attention kernel, optimizer and precision; each contender is a process of its own, and
they take turns. On a GPU: TinyLlama's shape in bf16, full windows of 2k to 32k, and packed rows of 64 to 4,096 tokens.
On a CPU the same code runs with a tiny Llama in fp32, to show that it runs: such figures say nothing of a GPU.

TRL's best setting that runs here is taken: packing with FlashAttention where that is installed, else padding-free or
plain; it needs `pip install trl`, and is left out, loudly, without it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.step_overhead.trials import free_port
from benchmarks.step_overhead.workload import Workload
from dtrain.planner.plan import versions

ROOT = Path(__file__).resolve().parents[1]
WARM_UP_STEPS = 2
H100_BF16_TFLOPS = 989.0
"""Dense bf16 of the datasheet, the contract's base of MFU; other cards: --tflops."""


@dataclass(frozen=True)
class Trial:
    name: str
    workload: Workload
    packed: bool
    steps: int


def trials(is_gpu: bool) -> list[Trial]:
    """Full windows of growing length, 32,768 tokens a step; and packed rows of a log-normal mix."""
    if not is_gpu:
        tiny = Workload(layers=2, hidden=64, intermediate=128, vocabulary=512, window=128, rows=16, rows_per_step=2)
        return [
            Trial("full 128", full(tiny, 128, 2), True, 4),
            Trial("packed", replace(tiny, median_tokens=32), True, 4),
        ]
    shape = Workload(layers=22, hidden=2048, intermediate=5632, heads=32, key_value_heads=4, vocabulary=32000)
    windows = [Trial(f"full {size}", full(shape, size, 32768 // size), True, 8) for size in (2048, 8192, 32768)]
    mixed = replace(shape, window=4096, rows=512, windows_per_step=8, median_tokens=512, spread=1.0)
    return [*windows, Trial("packed 64 to 4096", mixed, True, 8)]


def full(shape: Workload, window: int, per_step: int) -> Workload:
    """Rows that fill their windows: a spread of nothing around a median beyond the window."""
    return replace(
        shape, window=window, rows=8 * per_step, windows_per_step=per_step, rows_per_step=per_step,
        median_tokens=2.0 * window, spread=0.0,
    )  # fmt: skip


# --- one contender, in its own process ----------------------------------------------------------------------------


def contend(name: str, trial: Trial) -> dict[str, Any]:
    """Seconds and real tokens of the timed steps, and the peak of memory."""
    import torch

    torch.manual_seed(0)
    run = {"dtrain": dtrain_steps, "bare": bare_steps, "trl": trl_steps}[name]
    seconds, tokens = run(trial)
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    return {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds, "allocated_gib": peak}


class Timer:
    """Seconds from the end of the warm-up to the end of the last step, the device's work included."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.started, self.seconds = steps + WARM_UP_STEPS, 0, 0.0, 0.0

    def step(self) -> bool:
        """True when all steps are done."""
        self.done += 1
        if self.done in (WARM_UP_STEPS, self.steps):
            _synchronize()
            self.started, self.seconds = time.perf_counter(), time.perf_counter() - self.started
        return self.done == self.steps


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def dtrain_steps(trial: Trial) -> tuple[float, int]:
    from benchmarks.step_overhead import dtrain_loop
    from benchmarks.step_overhead import workload as settings
    from dtrain.data.schedule import make_schedule
    from dtrain.planner.setup import ZeroBuckets
    from dtrain.train import attention_choice, engine
    from dtrain.train.loop import Progress, Stopped, train
    from dtrain.train.lr import LearningRate
    from dtrain.train.model import DTYPES, load_model

    workload, ranks = trial.workload, dtrain_loop.join()
    precision: Any = "bf16" if ranks.device.type == "cuda" else "fp32"
    back_end, _ = attention_choice.choose("auto", ranks.device, DTYPES[precision])
    with tempfile.TemporaryDirectory() as folder:
        workload.write_model_folder(Path(folder))
        config = dtrain_loop.config_of(
            Path(folder), optimizer=settings.OPTIMIZER, learning_rate=settings.LEARNING_RATE, sample_packing=True,
            sequence_len=workload.window, seed=workload.seed, logging_steps=settings.LOGGING_STEPS,
        )  # fmt: skip
        choice = dtrain_loop.choice_of(config, 1 if precision == "bf16" else 0, workload.windows_per_step, 1, 1)
        choice = replace(choice, precision=precision, attention=back_end)
        told = engine.deepspeed_config(config, choice, 10**9, ZeroBuckets())
        model = load_model(config, choice, Path(folder), workload.vocabulary, back_end, told)
    rows = workload.token_rows
    schedule = make_schedule(
        rows.lengths, rows.trained, window=workload.window, packing=True, shuffle=True, seed=workload.seed, world=1,
        micro_batch_size=workload.windows_per_step, accumulation=1, epochs=10_000, max_steps=None,
    )  # fmt: skip
    timer = Timer(trial.steps)
    rate = LearningRate(settings.LEARNING_RATE, "constant", schedule.steps, 0)
    ready = dtrain_loop.training(
        config, choice, model, ranks, rows, schedule, rate, log=lambda line: None, stop_asked=timer.step
    )
    with contextlib.suppress(Stopped):
        train(ready, Progress())
    return timer.seconds, sum(schedule.step(index).tokens for index in range(WARM_UP_STEPS, timer.steps))


def bare_steps(trial: Trial) -> tuple[float, int]:
    """transformers' forward pass and loss, fused AdamW, clipping; packed by `position_ids`, all windows in one row."""
    import torch

    from benchmarks.step_overhead import bare_loops
    from benchmarks.step_overhead import workload as settings

    workload, device = trial.workload, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = workload.model().to(device).train()
    optimizer, timer, tokens = bare_loops.optimizer_of(model), Timer(trial.steps), 0
    for inputs, trained in bare_loops.shares(workload, "packed", 0, 1):
        on_device = {name: tensor.to(device) for name, tensor in inputs.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(**on_device, use_cache=False, num_items_in_batch=trained).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        counted = int((inputs["input_ids"] != settings.PAD_ID).sum())
        tokens += counted if timer.done >= WARM_UP_STEPS else 0
        if timer.step():
            return timer.seconds, tokens
    raise AssertionError("shares never end")


def trl_steps(trial: Trial) -> tuple[float, int]:
    import torch
    from transformers import TrainerCallback
    from trl import SFTTrainer

    from benchmarks.step_overhead import trl_trainer

    workload, timer, cuda = trial.workload, Timer(trial.steps), torch.cuda.is_available()
    mode = "packing" if not cuda or importlib.util.find_spec("flash_attn") else "padding_free"
    with tempfile.TemporaryDirectory() as folder:
        told = trl_trainer.arguments(folder, workload, mode)
        told.use_cpu, told.bf16, told.max_steps = not cuda, cuda, timer.steps
        told.include_num_input_tokens_seen = "all"
        trainer = SFTTrainer(
            model=workload.model(), args=told, train_dataset=trl_trainer.dataset(workload),
            processing_class=trl_trainer.word_tokenizer(workload),
        )  # fmt: skip

        class Ticks(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *_: Any, **__: Any) -> None:
                timer.step()

        trainer.add_callback(Ticks())
        trainer.train()
    share = trial.steps / timer.steps
    return timer.seconds, round(trainer.state.num_input_tokens_seen * share)


# --- the parent ---------------------------------------------------------------------------------------------------


def in_a_process(name: str, number: int) -> dict[str, Any]:
    environment = os.environ | {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.train_step", "--contender", name, "--trial", str(number)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        return {"error": ran.stderr.strip().splitlines()[-1:]}
    told: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return told


def model_flops_per_token(workload: Workload) -> float:
    """The contract's: 6·parameters + 6·layers·hidden·sequence."""
    head = workload.hidden // workload.heads
    attention = 2 * workload.hidden**2 + 2 * workload.hidden * workload.key_value_heads * head
    block = attention + 3 * workload.hidden * workload.intermediate
    parameters = workload.layers * block + 2 * workload.vocabulary * workload.hidden
    return 6.0 * parameters + 6.0 * workload.layers * workload.hidden * workload.window


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write JSON there")
    parser.add_argument("--tflops", type=float, default=H100_BF16_TFLOPS, help="dense bf16 of this card's datasheet")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--contender", choices=("dtrain", "bare", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--trial", type=int, help=argparse.SUPPRESS)
    told = parser.parse_args()
    gpu = torch.cuda.is_available()
    planned = trials(gpu)
    if told.contender:
        print(json.dumps(contend(told.contender, planned[told.trial])))
        return
    device = torch.cuda.get_device_name(0) if gpu else "cpu (tiny model: says nothing of a GPU)"
    print(f"on {device}")
    contenders = ["dtrain", "bare"]
    if importlib.util.find_spec("trl"):
        contenders.append("trl")
    else:
        print("TRL IS NOT INSTALLED: its rows are left out (pip install trl)")
    rows = []
    for number, trial in enumerate(planned):
        for repetition in range(told.repetitions):
            for name in contenders:
                found = in_a_process(name, number)
                if gpu and "tokens_per_second" in found:
                    flops = model_flops_per_token(trial.workload) * found["tokens_per_second"]
                    found["mfu"] = flops / (told.tflops * 1e12)
                rows.append({"trial": trial.name, "contender": name, "repetition": repetition, **found})
                print({key: value for key, value in rows[-1].items() if key != "seconds"}, flush=True)
    if told.out:
        document = {
            "schema_version": 1, "date": time.strftime("%Y-%m-%d"), "device": device, "versions": versions(),
            "load": os.getloadavg()[0], "trials": [asdict(one) for one in planned], "rows": rows,
        }  # fmt: skip
        told.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
