"""Options and the sbatch text that follows from them; no cluster needed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers.slurm import SlurmLauncher
from dtrain_launchers.slurm_options import read_options, seconds_of, slurm_time
from dtrain_launchers.slurm_queue import gpus_in

from dtrain.errors import BadInput
from dtrain.launch.api import Job

PLAN = {
    "hours": 2.0, "save_seconds": 30.0, "start_seconds": 60.0, "host_memory_gib": 100.0,
    "throughput": {"step_seconds": 2.0},
}  # fmt: skip


def job(nodes: int = 2, device: str = "cuda", folder: str = "/shared/run", **options: Any) -> Job:
    return Job("20261123-1", "name", Path(folder), nodes, 8, device, plan=PLAN, options=options)  # type: ignore[arg-type]


def script(**more: Any) -> str:
    one = job(**more)
    text: str = SlurmLauncher().render(one).files[str(one.folder / "dtrain" / "train.sbatch")]
    return text


def head(**more: Any) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script(**more).splitlines() if line.startswith("#SBATCH")]


def test_the_head_follows_from_job_and_plan() -> None:
    assert head() == [
        "--job-name=dtrain-20261123-1", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=32", "--mem=122880M",
        "--gpus-per-node=8", "--time=03:12:00", "--dependency=singleton", "--signal=B:USR1@90", "--requeue",
        "--open-mode=append", "--output=/shared/run/dtrain/logs/job.log",
    ]  # fmt: skip


def test_every_option_has_its_line() -> None:
    lines = head(
        partition="gpu", account="proj-1", qos="long", constraint="a100&ib", reservation="r", nodelist="n[1-4]",
        exclude="n7", time="1-00:00:00", mem="0", cpus_per_task=64, gres="gpu:a100:8", exclusive=True, signal="USR2",
        signal_margin_seconds=300, max_requeues=0, extra="#SBATCH --mail-type=END\n#SBATCH --comment='as it is'",
    )  # fmt: skip
    assert set(lines) >= {
        "--partition=gpu", "--account=proj-1", "--qos=long", "--constraint=a100&ib", "--reservation=r",
        "--nodelist=n[1-4]", "--exclude=n7", "--time=1-00:00:00", "--mem=0", "--cpus-per-task=64",
        "--gres=gpu:a100:8", "--exclusive", "--signal=B:USR2@300", "--no-requeue", "--mail-type=END",
        "--comment='as it is'",
    }  # fmt: skip
    assert not any(line.startswith("--gpus-per-node") for line in lines)


def test_on_cpus_no_gpus_are_asked_for() -> None:
    lines = head(device="cpu", nodes=1)
    assert "--cpus-per-task=8" in lines
    assert not any("gpu" in line for line in lines)
    assert "on_every_node preflight" not in script(device="cpu", nodes=1)
    assert "on_every_node preflight" in script(device="cpu", nodes=2)


def test_setup_comes_before_anything_of_ours() -> None:
    lines = script(setup=["module load cuda", "export A=1"]).splitlines()
    assert lines.index("module load cuda") + 1 == lines.index("export A=1") < lines.index("run=/shared/run")


@pytest.mark.parametrize("options", [{}, {"seeds": [1, 2]}, {"max_requeues": 0, "setup": "true"}])
def test_it_is_a_program_that_bash_accepts(options: dict[str, Any]) -> None:
    for folder in ("/shared/run", "/a b/'c\" $(touch x)\n;d"):
        done = subprocess.run(["bash", "-n"], input=script(folder=folder, **options), capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_path_that_a_head_line_cannot_say_goes_nowhere() -> None:
    assert "--output=/dev/null" in head(folder="/a b/%j")


def test_seeds_are_an_array_with_a_folder_each() -> None:
    one = job(seeds=[3, 5])
    files = SlurmLauncher().render(one).files
    assert "#SBATCH --array=0-1\n" in files["/shared/run/dtrain/train.sbatch"]
    assert "singleton" not in files["/shared/run/dtrain/train.sbatch"]
    assert "seed: 5\noutput_dir: /shared/run/seed-5\n" in files["/shared/run/seed-5/dtrain/config.yaml"]
    assert '"/shared/run/seed-5"' in files["/shared/run/seed-5/dtrain/launch.json"]


# --- a template of one's own ------------------------------------------------------------------------------------------


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.j2"
    mine.write_text("#!/bin/bash\n#SBATCH -J {{ job_name }} -N {{ nodes }}\ntrain {{ folder | quoted }}\n")
    assert script(template=str(mine)) == "#!/bin/bash\n#SBATCH -J dtrain-20261123-1 -N 2\ntrain /shared/run\n"


@pytest.mark.parametrize(("text", "says"), [("{{ nodez }}", "nodez"), ("{% if %}", "cannot be filled")])
def test_a_template_that_does_not_work(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.j2").write_text(text)
    with pytest.raises(BadInput, match=says) as caught:
        script(template=str(tmp_path / "mine.j2"))
    assert caught.value.key == "launchers.slurm.template"
    with pytest.raises(BadInput, match="cannot be read"):
        script(template=str(tmp_path / "none.j2"))


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("partition", "a b"), ("partition", "x\n#SBATCH --exclusive"), ("account", ""), ("time", "soon"),
        ("time", "1:2:3:4"), ("cpus_per_task", 0), ("cpus_per_task", True), ("seeds", [1, 1]), ("seeds", 3),
        ("signal", "TERM"), ("signal_margin_seconds", 65536), ("max_requeues", -1), ("extra", ["--mail-type=END"]),
        ("extra", 3), ("setup", [3]), ("template", ""), ("grace_seconds", -1), ("env", {"a b": 1}), ("exclusive", 1),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_meant(key: str, value: Any) -> None:
    with pytest.raises(BadInput) as caught:
        read_options({key: value})
    assert caught.value.key == f"launchers.slurm.{key}"
    assert caught.value.allowed


def test_the_nearest_key_is_named() -> None:
    with pytest.raises(BadInput) as caught:
        read_options({"partitoin": "gpu"})
    assert caught.value.fix == "did you mean partition?"


def test_a_time_limit_shorter_than_one_checkpoint() -> None:
    """60 s to start, 2 s for a step, 30 s to save, and the margin of 90 s before the limit."""
    with pytest.raises(BadInput, match="shorter than one checkpoint") as caught:
        script(time="3")
    assert "182 s" in caught.value.message
    assert caught.value.allowed == "more than 00:04:00"
    assert "--time=00:10:00" in head(time="00:10:00")
    assert "--time=UNLIMITED" in head(time="UNLIMITED")


def test_without_sbatch_it_says_where_to_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (problem,) = SlurmLauncher().check(job())
    assert problem.startswith("sbatch is not on PATH: run dtrain on a login node of the cluster")
    assert "--set launchers.slurm.login=user@host" in problem
    assert SlurmLauncher().check() == [problem]


# --- SLURM's own forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("90", 5400), ("1:30", 90), ("1:00:00", 3600), ("2-0", 172_800), ("1-2:30", 95_400), ("1-00:00:01", 86_401),
        ("UNLIMITED", None), ("infinite", None),
    ],
)  # fmt: skip
def test_times_as_slurm_takes_them(told: str, seconds: int | None) -> None:
    assert seconds_of(told) == seconds


def test_times_as_slurm_prints_them() -> None:
    assert [slurm_time(seconds) for seconds in (1, 3600, 90_001)] == ["00:01:00", "01:00:00", "1-01:01:00"]


def test_gpus_in_a_gres() -> None:
    assert gpus_in("gpu:a100:8(S:0-1),nic:2") == 8
    assert (gpus_in("gpu:4"), gpus_in("(null)"), gpus_in("gpu:a:2,gpu:b:1")) == (4, 0, 3)
