"""Every number of ranks and ZeRO stage to every other: save on one, go on on the other.

    python -m tests.soak.crossings --json tests/soak/crossings.json

{1, 2, 4} ranks × stages 0 to 3, to the same; LoRA and QLoRA at stages 0 to 2; sequence parallel 1 and 2. The global
batch stays. What is compared: losses and gradient norms after the checkpoint, with the run that was not interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.train.cases import Case
from tests.train.conftest import Forker, results, write_cases

WORLDS = (1, 2, 4)
BATCH = 8
SAVE_AT = 2
STEPS = 4
SAME_TO = 1e-5


@dataclass(frozen=True)
class Layout:
    world: int
    stage: int
    kind: str = "full"
    """full, lora or qlora."""
    sequence_parallel: int = 1

    @property
    def name(self) -> str:
        beside = f" sp {self.sequence_parallel}" if self.sequence_parallel > 1 else ""
        return f"{self.kind}, {self.world} ranks, stage {self.stage}{beside}"

    def case(self, name: str, folder: Path, **more: Any) -> Case:
        """Steps of the same rows on any layout."""
        micro = BATCH * self.sequence_parallel // self.world // 2
        adapter = None if self.kind == "full" else self.kind
        return Case(
            name, self.stage, max(1, micro), BATCH * self.sequence_parallel // self.world // max(1, micro), STEPS,
            folder=str(folder), adapter=adapter, four_bit=self.kind == "qlora",
            sequence_parallel=self.sequence_parallel, **more,
        )  # fmt: skip


def everything() -> list[tuple[Layout, Layout]]:
    """All that is crossed."""
    full = [Layout(world, stage) for world in WORLDS for stage in range(4)]
    crossed = list(itertools.product(full, full))
    for kind in ("lora", "qlora"):
        some = [Layout(world, stage, kind) for world in WORLDS for stage in (0, 2)]
        crossed += [(one, other) for one, other in itertools.product(some, some) if one != other]
    long = [Layout(2, 2, sequence_parallel=2), Layout(4, 3, sequence_parallel=2), Layout(4, 2), Layout(1, 1)]
    return crossed + [(one, other) for one, other in itertools.product(long, long) if one != other]


def pairwise() -> list[tuple[Layout, Layout]]:
    """Sixteen of them in which every two of (ranks before, stage before, ranks after, stage after) meet."""
    rows = []
    for before, after in itertools.product(range(4), range(4)):
        worlds = WORLDS[(before + after) % 3], WORLDS[(before + 2 * after) % 3]
        rows.append((Layout(worlds[0], before), Layout(worlds[1], after)))
    return rows


def cross(pairs: Sequence[tuple[Layout, Layout]], home: Path, forker: Forker) -> Iterator[dict[str, Any]]:
    """For each pair how far the second went off the first."""
    first = {one for one, _ in pairs}
    saved: dict[str, dict[str, Any]] = {}
    for world in WORLDS:
        mine = [one.case(one.name, home / one.name, save_at=SAVE_AT) for one in first if one.world == world]
        saved |= started(forker, home / f"save-{world}", world, mine)
    for world in WORLDS:
        mine = [
            replace(after.case(f"{before.name} → {after.name}", home / before.name, load=True))
            for before, after in pairs if after.world == world
        ]  # fmt: skip
        resumed = started(forker, home / f"load-{world}", world, mine)
        for before, after in pairs:
            if after.world == world:
                told = resumed[f"{before.name} → {after.name}"]
                yield {"before": before.name, "after": after.name, **furthest(saved[before.name], told)}


def started(forker: Forker, folder: Path, world: int, cases: list[Case]) -> dict[str, dict[str, Any]]:
    if not cases:
        return {}
    folder.mkdir()
    write_cases(folder, cases)
    codes = forker.start(world, folder)
    assert not any(codes), (codes, (folder / "rank-0.log").read_text()[-4000:])
    return results(folder, world)


def furthest(whole: dict[str, Any], rest: dict[str, Any]) -> dict[str, float]:
    """Largest relative difference of any loss and any gradient norm."""
    off = {}
    for key in ("losses", "grad_norms"):
        wanted = whole[key][SAVE_AT:]
        assert len(wanted) == len(rest[key]) == STEPS - SAVE_AT
        off[key] = max(abs(a - b) / abs(a) for a, b in zip(wanted, rest[key], strict=True))
    return off


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, required=True)
    told = parser.parse_args()
    started_at = time.time()
    forker = Forker()
    with tempfile.TemporaryDirectory() as home:
        rows = list(cross(everything(), Path(home), forker))
    forker.end()
    worst = max(max(row["losses"], row["grad_norms"]) for row in rows)
    document = {
        "schema_version": 1, "crossings": len(rows), "worst_relative_difference": worst, "allowed": SAME_TO,
        "seconds": round(time.time() - started_at), "ended": round(time.time()), "rows": rows,
    }  # fmt: skip
    told.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return 0 if worst <= SAME_TO else 1


if __name__ == "__main__":
    raise SystemExit(main())
