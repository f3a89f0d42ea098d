"""The end of a rank's run: the model folder, the samples, and what was planned beside what was measured."""

from __future__ import annotations

from typing import Any

from safetensors import SafetensorError

from dtrain.data.prepare import Prepared
from dtrain.errors import RunFailed
from dtrain.files import read_json, write_json
from dtrain.planner.measured import compared, keep
from dtrain.track import jsonl, plot
from dtrain.train import export, generate
from dtrain.train.attention_choice import sight_of
from dtrain.train.build import Rank
from dtrain.train.loop import Progress, Training
from dtrain.train.saver import Outcome


def longest_tokens(rank: Rank, prepared: Prepared, run: Training) -> int:
    """Of this rank's longest micro-batch, over all ranks that share it: what the measured peak is for."""
    slots = run.schedule.longest(rank.ranks.data_rank)
    return sum(int(prepared.train.lengths[row]) for slot in slots for row in slot)


def write_model(rank: Rank, prepared: Prepared, run: Training, saved: Outcome | None) -> None:
    """The model folder. RunFailed when the disk does not take it: what is saved, and how it is written later."""
    tokenizer = generate.read_tokenizer(prepared.tokenizer_folder)
    try:
        export.export(
            run.engine.module, tokenizer, rank.paths.output, rank.ranks, prepared.report.stop_tokens,
            sight_of(rank.config),
        )  # fmt: skip
    except (OSError, SafetensorError) as error:
        lost = "" if saved is None or saved.problem is None else f", nor could the checkpoint of step {saved.step}"
        kept = "the checkpoint before it is whole" if lost else "the last step's checkpoint is whole"
        raise RunFailed(
            f"the model could not be written{lost}: {str(error).splitlines()[0]}; {kept}", file=str(rank.paths.output),
            fix="free space on that disk, then `dtrain resume`: it goes on from that checkpoint and writes the model",
        ) from error  # fmt: skip


def tell_the_end(rank: Rank, report: dict[str, Any]) -> None:
    """Samples, the chart and the report. The model is written: a disk that is full now fails no run."""
    rank.state.stage("sampling")
    try:
        write_json(rank.paths.report, report)
        plot.loss(rank.paths.metrics, rank.paths.loss_plot)
        write_json(rank.paths.samples, generate.samples(rank.config, rank.paths.output))
        run = read_json(rank.paths.about)["id"] if rank.paths.about.is_file() else rank.paths.output.name
        keep(compared(rank.plan, report, run))
    except OSError as error:
        rank.say(f"WARNING: the model is written, its report is not whole: {error}")


def words_of_stop(step: int, saved: Outcome | None) -> str:
    """What a stopped run can go on from."""
    if saved is None or saved.problem is not None or saved.step != step:
        return f"stopped after step {step}, which could not be saved: `dtrain resume` takes the checkpoint before it"
    return f"stopped after step {step}, everything is saved"


def report_of(
    rank: Rank, progress: Progress, peaks: list[dict[str, float]], seconds: float, save_seconds: float
) -> dict[str, Any]:
    """report.json: what was planned beside what was measured."""
    lines = jsonl.read(rank.paths.metrics)
    trained = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "eval_loss" in line]
    steady = sorted(line["step_seconds"] for line in trained[1:] or trained)
    measured = {
        "peak_allocated_gib": max(peak["allocated_gib"] for peak in peaks),
        "peak_reserved_gib": max(peak["reserved_gib"] for peak in peaks),
        "step_seconds": steady[len(steady) // 2] if steady else None,
        "training_seconds": seconds,
        "save_seconds": save_seconds,
        "first_loss": trained[0]["loss"] if trained else None,
        "last_loss": trained[-1]["loss"] if trained else None,
        "first_eval_loss": held_out[0]["eval_loss"] if held_out else None,
        "last_eval_loss": held_out[-1]["eval_loss"] if held_out else None,
        "best_eval_loss": progress.best_eval_loss,
        "best_step": progress.best_step,
        "steps": progress.step,
        "tokens_seen": progress.tokens_seen,
    }
    memory, throughput = rank.plan["memory_gib"], rank.plan["throughput"]
    planned = {
        "peak_allocated_gib": memory["peak_allocated"], "peak_reserved_gib": memory["peak_reserved"],
        "step_seconds": throughput["step_seconds"], "steps": rank.plan["schedule"]["steps"],
    }  # fmt: skip
    return {"schema_version": 1, "planned": planned, "measured": measured}
