"""The user's own machine as a YAML: closed, errors with their lines, gaps filled from a catalogue card and said."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml

from dtrain.errors import BadInput, BadInputs
from dtrain.hardware.build import MOST_NODES, MOST_PER_NODE, Profile, linked, refuse_if_too_old
from dtrain.hardware.gpus import BY_NAME, GPUS, Gpu
from dtrain.hardware.machines import usual_surroundings

Kind = Literal["text", "count", "positive", "not negative"]

KEYS: Mapping[str, Kind] = {
    "name": "text",
    "gpu": "text",
    "gpus_per_node": "count",
    "nodes": "count",
    "memory_gib": "positive",
    "tflops_bf16": "positive",
    "measured_tflops_bf16": "positive",
    "memory_gb_per_s": "positive",
    "gpu_link_gb_per_s": "not negative",
    "pcie_gb_per_s": "positive",
    "network_gbit_per_s": "positive",
    "host_memory_gib": "positive",
    "usd_per_hour": "not negative",
    "catalogue": "text",
}
CARD_FIGURES = ("memory_gib", "tflops_bf16", "memory_gb_per_s", "gpu_link_gb_per_s", "pcie_gb_per_s")
MOST = {"gpus_per_node": MOST_PER_NODE, "nodes": MOST_NODES}
ALLOWED = {
    "text": "a text",
    "count": "a whole number from 1",
    "positive": "a number above 0",
    "not negative": "a number from 0",
}


@dataclass(frozen=True)
class Said:
    """What the file says: values already of their kind, and the line of each key."""

    file: str
    values: Mapping[str, str | float]
    lines: Mapping[str, int]

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        return float(value) if value is not None else None

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        return str(value) if value is not None else None

    def whole(self, key: str, otherwise: int) -> int:
        return int(self.values.get(key, otherwise))


def read_profile(path: Path) -> Profile:
    """A Profile from the user's YAML. Raises BadInput (several as BadInputs) with file and line."""
    said = _read(path)
    card, taken_because = _catalogue_card(said)
    _check_complete(said, card)
    per_node, nodes = said.whole("gpus_per_node", 1), said.whole("nodes", 1)
    gpu = _card(said, card)
    link_notes: tuple[str, ...] = ()
    if "gpu_link_gb_per_s" not in said.values:
        gpu, link_notes = linked(gpu, per_node)
    around = usual_surroundings(card.name, per_node) if card else None
    gaps = [key for key in (*CARD_FIGURES, "network_gbit_per_s", "host_memory_gib") if key not in said.values]
    notes = [f"taken from the catalogue's {card.name} ({taken_because}): {', '.join(gaps)}"] if card and gaps else []
    network = said.number("network_gbit_per_s")
    host = said.number("host_memory_gib")
    return Profile(
        name=said.text("name") or path.stem,
        said=str(path),
        gpu=gpu,
        gpus_per_node=per_node,
        nodes=nodes,
        host_memory_gib=host if host is not None else around.host_memory_gib if around else 0.0,
        network_gbit_per_s=network if network is not None else around.network_gbit_per_s if around else 0.0,
        usd_per_hour=said.number("usd_per_hour"),
        notes=(*notes, *_rate_notes(said, card), *link_notes, *((card.note,) if card and card.note else ())),
        surroundings_source=str(path) if around is None else f"{path}, gaps: {around.source}",
    )


def _read(path: Path) -> Said:
    file = str(path)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise BadInput(
            "no such profile file", file=file, key="--profile", fix="`dtrain profiles` lists named ones"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the profile file cannot be read: {error}", file=file, key="--profile") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise BadInput(f"this is no YAML: {error.problem}", file=file, line=line) from error
    except yaml.YAMLError as error:
        raise BadInput(f"this is no YAML: {error}", file=file) from error
    if not isinstance(node, yaml.MappingNode):
        raise BadInput("a profile file holds `key: value` lines", file=file, allowed=", ".join(KEYS))
    return _checked(file, node)


def _checked(file: str, node: yaml.MappingNode) -> Said:
    values: dict[str, str | float] = {}
    lines: dict[str, int] = {}
    errors: list[BadInput] = []
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        try:
            if key in lines:
                raise BadInput(f"said twice, first in line {lines[key]}", file=file, line=line, key=key)
            lines[key] = line
            value = _value(file, line, key, value_node)
            if value is not None:
                values[key] = value
        except BadInput as error:
            errors.append(error)
    if errors:
        raise BadInputs(errors)
    return Said(file, values, lines)


def _value(file: str, line: int, key: str, node: yaml.Node) -> str | float | None:
    """None for null: as if the key were not there."""
    if key not in KEYS:
        near = difflib.get_close_matches(key, KEYS, n=1)
        fix = f"did you mean `{near[0]}`?" if near else "remove it"
        raise BadInput("unknown key of a profile", file=file, line=line, key=key, allowed=", ".join(KEYS), fix=fix)
    if not isinstance(node, yaml.ScalarNode):
        raise BadInput("this takes one value", file=file, line=line, key=key, allowed=ALLOWED[KEYS[key]])
    if node.tag == "tag:yaml.org,2002:null":
        return None
    text = str(node.value)
    if KEYS[key] == "text":
        return text
    number = _number(text, KEYS[key], MOST.get(key))
    if number is None:
        most = f" to {MOST[key]}" if key in MOST else ""
        raise BadInput("wrong value", file=file, line=line, key=key, value=text, allowed=ALLOWED[KEYS[key]] + most)
    return number


def _number(text: str, kind: Kind, most: int | None) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number) or number < 0 or (kind == "positive" and number == 0):
        return None
    if kind == "count" and (number != int(number) or number < 1 or number > (most or number)):
        return None
    return number


def _catalogue_card(said: Said) -> tuple[Gpu | None, str]:
    """The card that fills gaps: the one `catalogue` names, else the one `gpu` happens to name."""
    named = said.text("catalogue")
    if named is not None:
        card = BY_NAME.get(named.lower())
        if card is None:
            near = difflib.get_close_matches(named.lower(), BY_NAME, n=1)
            raise BadInput(
                "no such card in the catalogue",
                file=said.file,
                line=said.lines["catalogue"],
                key="catalogue",
                value=named,
                allowed=", ".join(GPUS),
                fix=f"did you mean {near[0]}?" if near else "`dtrain profiles` lists the cards",
            )
        refuse_if_too_old(card, said.file)
        return card, "`catalogue`"
    return BY_NAME.get((said.text("gpu") or "").lower().replace(" ", "-")), "`gpu` is a card of it"


def _check_complete(said: Said, card: Gpu | None) -> None:
    needed = ["gpus_per_node"]
    if card is None:
        needed += [*CARD_FIGURES, "host_memory_gib"]
        if said.whole("nodes", 1) > 1:
            needed.append("network_gbit_per_s")
    missing = [key for key in needed if key not in said.values]
    if missing:
        fix = f"add {', '.join(missing)}"
        if missing != ["gpus_per_node"]:
            fix += f"; or name the nearest card, and its figures fill the gaps: catalogue: {_nearest_card(said)}"
        raise BadInput(f"figures are missing: {', '.join(missing)}", file=said.file, key=missing[0], fix=fix)


def _nearest_card(said: Said) -> str:
    """The catalogue card with the nearest memory to offer in a fix; an A100 where the file says none."""
    wanted = said.number("memory_gib")
    return "a100-80gb" if wanted is None else min(GPUS.values(), key=lambda gpu: abs(gpu.memory_gib - wanted)).name


def _card(said: Said, card: Gpu | None) -> Gpu:
    """The catalogue card with the file's figures laid over it; or one made of the file's figures alone."""
    figures = {key: said.number(key) for key in CARD_FIGURES if key != "tflops_bf16"}
    told = {key: value for key, value in figures.items() if value is not None}
    title = said.text("gpu") or (card.title if card else said.text("name") or "the user's card")
    sources = {**(card.sources if card else {}), **dict.fromkeys(told, said.file)}
    base = card or Gpu("", "", 0.0, {}, None, 0.0, 0.0, 0.0, compute_capability=(8, 0))
    if said.number("tflops_bf16") is not None:
        sources["tflops"] = said.file
    return replace(
        base,
        **told,  # type: ignore[arg-type]
        name=title if card is None or BY_NAME.get(title.lower()) is not card else card.name,
        like=card.name if card else "",
        title=title,
        tflops=_rates(said.number("tflops_bf16"), card),
        measured_tflops_bf16=_measured(said, card),
        sources=sources,
    )


def _rates(said: float | None, card: Gpu | None) -> Mapping[str, float | None]:
    """The file's 16-bit rate, the other precisions in the catalogue card's proportion."""
    if said is None:
        return card.tflops if card else {}
    if card is None:
        return {"bf16": said, "fp16": said}
    sixteen_bit = card.tflops.get("bf16") or card.tflops.get("fp16")
    if not sixteen_bit:
        return {**card.tflops, "bf16": said}
    return {name: rate * said / sixteen_bit if rate else None for name, rate in card.tflops.items()}


def _measured(said: Said, card: Gpu | None) -> float | None:
    """Said, or the catalogue card's in proportion to the file's datasheet rate."""
    told = said.number("measured_tflops_bf16")
    if told is not None or card is None or card.measured_tflops_bf16 is None:
        return told
    datasheet = card.tflops.get("bf16") or card.tflops.get("fp16")
    rate = said.number("tflops_bf16")
    return card.measured_tflops_bf16 * rate / datasheet if rate and datasheet else card.measured_tflops_bf16


def _rate_notes(said: Said, card: Gpu | None) -> tuple[str, ...]:
    if card is None:
        return ("no `catalogue`: taken as a card of compute capability 8.0 with bf16 and fp16 at the same rate",)
    if said.number("tflops_bf16") is not None:
        return (f"rates of other precisions follow `tflops_bf16` in the proportions of {card.name}",)
    return ()
