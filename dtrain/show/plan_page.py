"""A plan as one page that needs nothing else: memory, time, cost by machine, the neighbours, and every reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from dtrain.planner.memory import TERMS
from dtrain.planner.nearest import Way
from dtrain.planner.plan import Plan, versions
from dtrain.planner.rent import Option, Rent
from dtrain.show import plan_page_parts as html
from dtrain.show.plan_page_parts import Bar, Row, Spot
from dtrain.show.plan_page_style import style
from dtrain.show.rent import chosen_rows
from dtrain.units import count, dollars, duration, memory

OUTSIDE = "cache, context"
"""What the allocator keeps, and what lies outside torch: nvidia-smi's peak less the allocated one."""


def plan_page(plan: Plan, ways: Sequence[Way], market: Rent | str) -> str:
    """The whole document. `market`: what `dtrain rent` says, or in words why there is nothing to say."""
    title = f"{plan.facts.name} on {plan.profile.name}"
    body = "".join(
        (
            _header(plan), _tiles(plan), _ways(ways), _memory(plan), _time(plan), _choices(plan), _neighbours(plan),
            _market(plan, market), _notes(plan), _footer(plan),
        )
    )  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} – dtrain plan</title><style>{style()}</style></head><body><main>{body}</main></body>"
        "</html>\n"
    )


# --- at the top ---------------------------------------------------------------------------------------------------


def _header(plan: Plan) -> str:
    kind, words = (
        ("good", "fits") if plan.within_headroom
        else ("near", "fits, into the reserve") if plan.fits
        else ("bad", "does not fit")
    )  # fmt: skip
    profile = plan.profile
    nodes = f"{profile.nodes} nodes × " if profile.nodes > 1 else ""
    place = f"{profile.name}: {nodes}{profile.gpus_per_node} × {profile.gpu.title}"
    return (
        f"<header><h1>{escape(plan.facts.name)}<small>{escape(place)}</small></h1>"
        f'<span class="verdict {kind}">{words}</span></header>'
    )


def _tiles(plan: Plan) -> str:
    told, capacity = plan.memory, plan.profile.gpu.memory_gib
    between, cost = f"{memory(told.peak_low)} to {memory(told.peak_high)}", plan.cost
    paid = ("cost", dollars(cost.total), f"{dollars(cost.usd_per_hour)}/h, {cost.provider}") if cost else None
    tiles = (
        ("peak memory", memory(told.peak), f"of {capacity:.1f} GiB; {between}"),
        ("time", duration(plan.hours * 3600), f"{plan.schedule.steps:,} steps, {plan.schedule.source}"),
        ("speed", f"{plan.time.tokens_per_second:,.0f}", f"tokens/s{_mfu(plan)}"),
        *((paid,) if paid else ()),
    )  # fmt: skip
    return f'<div class="tiles">{"".join(html.tile(*one) for one in tiles)}</div>'


def _mfu(plan: Plan) -> str:
    return "" if plan.time.mfu is None else f", MFU {plan.time.mfu:.0%}"


def _ways(ways: Sequence[Way]) -> str:
    if not ways:
        return ""
    told = "".join(
        f'<div class="way"><b>{escape(way.change)}</b> <span class="soft">{escape(way.cost)}</span>'
        f"<code>{escape(way.command)}</code></div>"
        for way in ways
    )
    return html.section("What would fit", told)


# --- memory -------------------------------------------------------------------------------------------------------


def _memory(plan: Plan) -> str:
    told, capacity = plan.memory, plan.profile.gpu.memory_gib
    outside = told.peak - told.peak_allocated
    order = (*TERMS, OUTSIDE)
    rows = [
        Bar(
            phase.name, {**phase.terms, OUTSIDE: outside}, memory(phase.total + outside),
            phase.name == told.peak_phase, (told.peak_low, told.peak_high) if phase.name == told.peak_phase else None,
        )
        for phase in told.phases
    ]  # fmt: skip
    scale = max(capacity, told.peak_high) * 1.01
    peak = {**told.terms, OUTSIDE: outside}
    parts = [(at, f"{name} {memory(peak[name])}") for at, name in enumerate(order) if peak[name] > 0]
    per = "rank" if plan.profile.is_cpu else "GPU"
    return html.section(
        f"Memory of one {per}, phase by phase",
        html.bars(rows, order, scale, capacity),
        html.legend(parts),
        html.soft(_peaks(plan)),
        f"<details><summary>every term</summary>{_terms(plan)}</details>",
    )


def _peaks(plan: Plan) -> str:
    told = plan.memory
    end = f"{plan.profile.gpu.memory_gib:.1f} GiB"
    card = f"The upright mark is the end of the card, {end}; the thin line the interval of the peak."
    if plan.profile.is_cpu:
        return f"Live tensors of a rank. {card} Host {memory(told.host_memory_gib)}."
    return (
        f"{card} Allocated {memory(told.peak_allocated)}, reserved {memory(told.peak_reserved)}, nvidia-smi "
        f"{memory(told.peak_smi)}; {memory(plan.headroom_gib)} are kept free on purpose; host "
        f"{memory(told.host_memory_gib)} a node. The legend is of the peak."
    )


def _terms(plan: Plan) -> str:
    rows = [
        Row([escape(phase.name), *(memory(phase.terms[name]) for name in TERMS)], phase.name == plan.memory.peak_phase)
        for phase in plan.memory.phases
    ]
    return html.table(["phase", *TERMS], rows, range(1, len(TERMS) + 1))


# --- time ---------------------------------------------------------------------------------------------------------


def _time(plan: Plan) -> str:
    return html.section("Where the time goes", *_shares("a step", plan.time.parts), *_shares("the run", _run(plan)))


def _run(plan: Plan) -> dict[str, float]:
    run = plan.run
    return {
        "start": run.start_seconds, "training": run.train_seconds, "evaluation": run.evaluation_seconds,
        "checkpoints, export": run.checkpoint_seconds,
    }  # fmt: skip


def _shares(name: str, seconds: Mapping[str, float]) -> tuple[str, str]:
    """A bar of parts that add up to a whole, and its legend."""
    whole = sum(seconds.values())
    order = list(seconds)
    words = [
        (at, f"{part} {duration(seconds[part])} ({seconds[part] / whole:.0%})")
        for at, part in enumerate(order)
        if seconds[part] > 0.0005 * whole
    ]
    return html.bars([Bar(name, seconds, duration(whole))], order, whole), html.legend(words)


# --- choices ------------------------------------------------------------------------------------------------------


def _choices(plan: Plan) -> str:
    lines = []
    for reason in plan.reasons:
        head, separator, rest = reason.partition(": ")
        told = f"<b>{escape(head)}</b>: {escape(rest)}" if separator else escape(reason)
        lines.append(f"<li>{told}</li>")
    return html.section("Why this way", f"<ul>{''.join(lines)}</ul>")


def _neighbours(plan: Plan) -> str:
    if not plan.neighbours:
        return ""
    rows = [
        Row([
            f"<code>{escape(one.key)}: {escape(str(one.value))}</code>", f"{one.faster:+.0%}", memory(one.peak_gib),
            escape(one.verdict),
        ])
        for one in plan.neighbours
    ]  # fmt: skip
    table = html.table(["instead", "samples/s", "peak", "why not"], rows, (1, 2))
    return html.section("The neighbours", table, html.soft(f"{plan.layouts:,} layouts were compared."))


# --- where else ---------------------------------------------------------------------------------------------------


def _market(plan: Plan, market: Rent | str) -> str:
    heading = "Where it could run"
    if isinstance(market, str):
        return html.section(heading, html.soft(market))
    if not market.options:
        return html.section(heading, html.soft("No machine of the price table can run it as the file says."))
    spots = [Spot(option.hours, option.usd, option.plan.profile.name, option.on_front) for option in market.options]
    rows = [_offer(option) for option in chosen_rows(market.options)]
    table = html.table(["profile", "from", "$/h", "time", "$"], rows, (2, 3, 4))
    hidden = len(market.options) - len(rows)
    words = "Hours and dollars run from the order to the end. Bold: nothing is both faster and cheaper."
    more = f" {hidden} more: dtrain rent {plan.config} --json." if hidden else ""
    return html.section(heading, html.market(spots), table, html.soft(words + more))


def _offer(option: Option) -> Row:
    offer = option.offer
    kind = "" if offer.kind == "on-demand" else f" ({offer.kind})"
    place = f"{escape(offer.provider)}: {escape(offer.machine)}{kind}"
    return Row(
        [
            escape(option.plan.profile.name), f'{place}<br><span class="soft">{escape(offer.priced_on)}</span>',
            f"{offer.usd_per_hour:,.2f}", duration(option.hours * 3600), dollars(option.usd),
        ],
        option.on_front,
    )  # fmt: skip


# --- at the bottom ------------------------------------------------------------------------------------------------


def _notes(plan: Plan) -> str:
    if not plan.warnings:
        return ""
    return html.section("Notes", f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in plan.warnings)}</ul>")


def _footer(plan: Plan) -> str:
    known = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    choice = plan.choice
    batch = f"{choice.global_batch_size} sequences of {choice.sequence_len} tokens a step"
    words = (
        f"{plan.config}: {count(plan.facts.parameters)} parameters, {count(plan.trainable_parameters)} trained, "
        f"{batch}, {count(plan.schedule.tokens)} tokens ({plan.counts.source}). Planned with {known}."
    )
    return f"<footer>{escape(words)}</footer>"
