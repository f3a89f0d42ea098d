"""What a person gets wrong, asked of a real cluster: clear errors, and nothing half-started."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.cli import Place, Result
from tests.e2e.conftest import make_place  # noqa: F401
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


@pytest.fixture
def launch(cluster: Cluster, make_place: Callable[..., Place]) -> Callable[..., Result]:  # noqa: F811
    place = make_place()

    def launched(*arguments: str, **env: str) -> Result:
        done = place.dtrain("launch", "tiny.yaml", "--on", "slurm", "--json", *arguments, env=env)
        assert not (place.folder / "out").exists()
        assert cluster("squeue", "--noheader") == ""
        assert place.dtrain("runs", "--json").document["runs"] == []
        return done

    return launched


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--set", "launchers.slurm.partition=hihg"], 2, {"value": "hihg", "allowed": "hasty, high, low"}),
        (["--set", "launchers.slurm.partitoin=high"], 2, {"fix": "did you mean partition?"}),
        (["--set", "launchers.slurm.gres=gpu:3"], 2, {"allowed": "up to 2", "key": "launchers.slurm.gres"}),
        (["--set", "launchers.slurm.time=2:00:00"], 2, {"allowed": "up to 1:00:00"}),
        (["--set", "launchers.slurm.time=1"], 2, {"key": "launchers.slurm.time"}),
        (["--set", "launchers.slurm.constraint=h200"], 2, {"key": "launchers.slurm.constraint"}),
        (["--profile", "cpux2x3"], 5, {"key": "--on"}),
    ],
)
def test_a_mistake(launch: Callable[..., Result], arguments: list[str], code: int, says: dict[str, Any]) -> None:
    done = launch(*([] if "--profile" in arguments else ["--profile", "cpux2x2"]), *arguments)
    assert done.code == code, done.out + done.err
    error = done.document["error"]
    assert {key: error[key] for key in says} == says


def test_a_dry_run_prints_what_is_sent(cluster: Cluster, make_place: Callable[..., Place]) -> None:  # noqa: F811
    place = make_place()
    told = place.dtrain("launch", "tiny.yaml", "--profile", "cpux2x2", "--on", "slurm", "--dry-run", "--json").document
    (script,) = [text for name, text in told["files"].items() if name.endswith("train.sbatch")]
    assert told["would_be_refused"] == []
    assert told["commands"][0][:2] == ["sbatch", "--parsable"]
    held = ("--set", "launchers.slurm.extra=['#SBATCH --hold']")
    done = place.dtrain("launch", "tiny.yaml", "--profile", "cpux2x2", "--on", "slurm", "--detach", "--json", *held)
    assert done.code == 0, done.err
    run_id = done.document["id"]
    number = cluster("squeue", "--noheader", f"--name=dtrain-{run_id}", "--format=%i").strip()
    sent = cluster("scontrol", "write", "batch_script", number, "-").removesuffix("\n")
    wanted = script.replace(told["run"]["id"], run_id)
    assert [line for line in sent.splitlines() if "--hold" not in line] == wanted.rstrip("\n").splitlines()
    assert place.dtrain("stop", run_id).code == 0
    assert place.dtrain("status", run_id, "--json").document["state"] == "interrupted"
