"""Commands that only plan start no heavy library; what `preview` counts is what trains."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

from dtrain import assets
from tests.e2e.cli import Place, metrics

HEAVY = {"torch", "transformers", "deepspeed", "datasets", "numpy", "wandb", "pandas", "pyarrow"}
STORYTELLER = str(assets.root() / "configs" / "storyteller.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("plan", STORYTELLER, "--profile", "a100x8"),
        ("plan", STORYTELLER, "--profile", "a100x8", "--json"),
        ("launch", STORYTELLER, "--profile", "cpux1", "--dry-run", "--set", "output_dir=./out"),
        ("config", "show", STORYTELLER),
        ("profiles",),
        ("runs",),
    ],
    ids=lambda arguments: " ".join(word for word in arguments if word != STORYTELLER),
)
def test_nothing_heavy_is_imported(place: Place, arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dtrain", *arguments],
        cwd=place.folder, env=place.environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "click" in imported  # the list is one
    assert {name for name in imported if name.partition(".")[0] in HEAVY} == set()
    assert not (place.folder / "out").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("e2e")
def test_what_preview_counts_is_what_trains_packed(place: Place) -> None:
    """And what a mistake in the data left does not stand in the way: the same command works once it is put right."""
    packed = ("--set", "sample_packing=true", "--set", "max_steps=null")
    launch = ("launch", "tiny.yaml", "--profile", "cpux1", *packed)
    failed = place.dtrain(*launch, "--set", "datasets[0].type.field_output=story")
    assert failed.code == 2
    assert "launch it again: the folder is free" in failed.out
    counted = place.dtrain("preview", "tiny.yaml", "--json", *packed).document["report"]["train"]
    done = place.dtrain(*launch)
    assert done.code == 0, done.out + done.err
    assert [run["state"] for run in place.dtrain("runs", "--json").document["runs"]] == ["done"]
    lines = metrics(place.run("out"))
    assert sum(line["tokens"] for line in lines) == counted["tokens"] == lines[-1]["tokens_seen"]
    assert sum(line["trained_tokens"] for line in lines) == counted["trained_tokens"]
    assert place.run("out").loss_plot.exists()


def test_a_way_out_can_be_pasted(place: Place) -> None:
    """Also where the ZeRO stage it names is 1 or 0, which Python takes for true and false."""
    told = place.dtrain("plan", STORYTELLER, "--profile", "t4x1", "--json")
    assert told.code == 3
    for way in told.document["ways_out"]:
        command, *arguments = shlex.split(way["command"])
        assert command == "dtrain"
        assert place.dtrain(*arguments).code in (0, 3), way  # 3: it was told to insist
