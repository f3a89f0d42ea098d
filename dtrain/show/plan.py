"""A plan for people: a bar per phase against the card, the choices and their reasons, time and money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dtrain.planner.memory import TERMS, Phase
from dtrain.planner.nearest import Way
from dtrain.planner.plan import Plan
from dtrain.planner.trace import TraceTerm
from dtrain.planner.uncounted import Uncounted
from dtrain.show.console import Screen
from dtrain.units import count, dollars, duration, memory

COLOURS: Mapping[str, str] = {
    "weights": "blue", "gradients": "cyan", "optimizer": "magenta", "activations": "yellow", "logits": "red",
    "buffers": "green", "runtime": "bright_black",
}  # fmt: skip
BAR_CELLS = 34
FULL, FREE = "█", "·"


def print_plan(
    plan: Plan, ways: Sequence[Way] = (), console: Console | None = None, traced: Sequence[TraceTerm] = ()
) -> None:
    """Everything a person wants before spending: memory, choices, schedule, hours, dollars, what to change."""
    console = console or Screen()
    console.print(Panel(_headline(plan), title=_title(plan), title_align="left", border_style=_colour(plan)))
    console.print(_memory(plan))
    console.print(_choices(plan))
    console.print(_run(plan))
    for warning in plan.warnings:
        console.print(Text("note: ", "bold yellow") + Text(warning))
    if traced:
        console.print(_trace(traced))
    if ways:
        console.print(_ways(ways), soft_wrap=True)  # a command is copied whole


def _title(plan: Plan) -> str:
    return f" {plan.facts.name} on {plan.profile.name} "


def _colour(plan: Plan) -> str:
    return "green" if plan.within_headroom else "yellow" if plan.fits else "red"


def _headline(plan: Plan) -> Text:
    told, capacity = plan.memory, plan.profile.gpu.memory_gib
    verdict = "fits" if plan.within_headroom else "fits, into the reserve" if plan.fits else "DOES NOT FIT"
    text = Text(f"{verdict}: ", f"bold {_colour(plan)}")
    if not plan.fits and told.peak <= capacity:
        text.append(f"{memory(told.host_memory_gib)} of {plan.profile.host_memory_gib:.1f} GiB of a node's memory; ")
    text.append(f"{memory(told.peak)} of {capacity:.1f} GiB per {_card(plan)} at the peak ({told.peak_phase}), ")
    text.append(f"between {memory(told.peak_low)} and {memory(told.peak_high)}\n")
    text.append(f"{plan.schedule.steps:,} steps in {duration(plan.hours * 3600)}")
    text.append(f", {plan.time.tokens_per_second:,.0f} tokens/s")
    if plan.cost is not None:
        text.append(f", {dollars(plan.cost.total)} at {dollars(plan.cost.usd_per_hour)}/h")
    return text


def _card(plan: Plan) -> str:
    return "rank" if plan.profile.is_cpu else "GPU"


# --- memory -------------------------------------------------------------------------------------------------------


def _memory(plan: Plan) -> RenderableType:
    capacity = plan.profile.gpu.memory_gib
    largest = max(capacity, *(phase.total for phase in plan.memory.phases))
    table = Table(box=None, padding=(0, 1), show_header=False)
    for phase in plan.memory.phases:
        mark = "◀ peak" if phase.name == plan.memory.peak_phase else ""
        table.add_row(phase.name, _bar(phase, capacity, largest), f"{memory(phase.total):>9}", Text(mark, "bold"))
    legend = [Text(f"{FULL} ", COLOURS[name]).append(f"{name} {memory(size)}") for name, size in _terms(plan)]
    return Group(table, Padding(Columns(legend, padding=(0, 2)), (0, 0, 0, 2)), _three_peaks(plan))


def _terms(plan: Plan) -> list[tuple[str, float]]:
    """Name and GiB of the peak phase's terms, without those that are nothing."""
    return [(name, plan.memory.terms[name]) for name in TERMS if plan.memory.terms[name] > 0]


def _bar(phase: Phase, capacity: float, largest: float) -> Text:
    """Terms as coloured cells, free memory as dots; a red rule where the card ends if the phase is beyond it."""
    bar, used = Text(), 0.0
    scale = BAR_CELLS / largest
    filled = 0
    for name in TERMS:
        used += phase.terms[name]
        cells = round(used * scale) - filled
        bar.append(FULL * cells, COLOURS[name])
        filled += cells
    bar.append(FREE * (round(capacity * scale) - filled), "bright_black")
    return bar


def _three_peaks(plan: Plan) -> Text:
    told = plan.memory
    if plan.profile.is_cpu:
        return Text(f"  live tensors of a rank {memory(told.peak)} · host {memory(told.host_memory_gib)}", "dim")
    return Text(
        f"  allocated {memory(told.peak_allocated)} · reserved {memory(told.peak_reserved)} · nvidia-smi "
        f"{memory(told.peak_smi)} · host {memory(told.host_memory_gib)} per node",
        "dim",
    )


# --- choices and the run ------------------------------------------------------------------------------------------


def _choices(plan: Plan) -> RenderableType:
    text = Text("\nWhy\n", "bold")
    for reason in plan.reasons:
        head, separator, rest = reason.partition(": ")
        text.append("  • ").append(head, "bold" if separator else "").append(f"{separator}{rest}\n")
    return text


def _run(plan: Plan) -> RenderableType:
    choice, schedule = plan.choice, plan.schedule
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_row("model", f"{count(plan.facts.parameters)} parameters, {count(plan.trainable_parameters)} trained")
    batch = (
        f"{choice.global_batch_size} = {choice.micro_batch_size} × {choice.gradient_accumulation_steps} accumulation "
        f"× {choice.global_batch_size // (choice.micro_batch_size * choice.gradient_accumulation_steps)} ranks"
    )
    table.add_row("batch", f"{batch}, windows of {choice.sequence_len} tokens")
    table.add_row("schedule", f"{schedule.steps:,} steps, {count(schedule.tokens)} tokens ({plan.counts.source})")
    table.add_row("speed", _speed(plan))
    table.add_row("time", duration(plan.hours * 3600))
    if plan.cost is not None:
        where = ", ".join(part for part in (plan.cost.provider, plan.cost.priced_on) if part)
        table.add_row("cost", f"{dollars(plan.cost.total)} at {dollars(plan.cost.usd_per_hour)}/h ({where})")
    if plan.layouts > 1:
        table.add_row("layouts", f"{plan.layouts:,} were compared")
    return Group(Text("The run", "bold"), table)


def _speed(plan: Plan) -> str:
    pace = plan.time
    words = f"{duration(pace.step_seconds)} a step, {pace.tokens_per_second_per_gpu:,.0f} tokens/s per {_card(plan)}"
    return words if pace.mfu is None else f"{words}, MFU {pace.mfu:.0%}"


def _trace(traced: Sequence[TraceTerm]) -> RenderableType:
    table = Table(box=None, padding=(0, 1), title="The real model on fake tensors", title_justify="left")
    for heading in ("", "planned", "traced", "difference"):
        table.add_column(heading, justify="left" if not heading else "right")
    for term in traced:
        table.add_row(term.name, memory(term.planned_gib), memory(term.traced_gib), f"{term.error:+.1%}")
    return table


def print_uncounted(told: Uncounted, console: Console | None = None) -> None:
    """A model without a closed form: what was traced, and what it needs under each ZeRO stage."""
    console = console or Screen()
    capacity = told.profile.gpu.memory_gib
    console.print(Text("note: ", "bold yellow") + Text(told.words))
    console.print(
        f"{told.name}: {count(told.parameters)} parameters, micro-batch {told.micro_batch_size} of "
        f"{told.sequence_len:,} tokens in {told.precision}; beside the weights"
    )
    for name, size in told.traced.items():
        console.print(f"  {name:16} {memory(size):>9}")
    for stage, peak in told.by_stage.items():
        verdict = "fits" if told.fits(stage) else "does not fit"
        console.print(f"  ZeRO stage {stage}     {memory(peak):>9} of {memory(capacity)} per GPU: {verdict}")


def _ways(ways: Sequence[Way]) -> RenderableType:
    text = Text("\nWhat would fit\n", "bold")
    for way in ways:
        text.append(f"  • {way.change}", "bold").append(f" ({way.cost})\n").append(f"    {way.command}\n", "cyan")
    return text
