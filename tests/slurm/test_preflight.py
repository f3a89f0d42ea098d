"""The preflight between real network namespaces, and how it names the bad node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from dtrain.launch import rollcall
from dtrain.launch.ending import Ending
from dtrain.launch.rollcall import WITH_OTHERS, Roll
from dtrain.launch.spec import LaunchSpec
from dtrain.paths import RunPaths
from tests.slurm.cluster import Cluster, run
from tests.waiting import PATIENCE_SECONDS

WITH_SECONDS = """
import sys
from dtrain.launch import preflight, rollcall
rollcall.HELLO_SECONDS, rollcall.LOAD_SECONDS = {hello}, 2.0
preflight.main(sys.argv[1:])
"""


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "run")
    paths.run.mkdir(parents=True)
    spec = LaunchSpec("id", prepare=(), ranks=(), ranks_per_node=1, device="cpu", working_directory="/", nodes=2)
    paths.launch.write_text(spec.as_text())
    return paths


@pytest.fixture
def preflight(cluster: Cluster, paths: RunPaths) -> Callable[..., str]:
    """Run it on the named nodes (`login` is this machine); what the first of them came to."""

    def told(*names: str, hello: float = PATIENCE_SECONDS, **python_path: str) -> str:
        script = WITH_SECONDS.format(hello=hello)
        with ExitStack() as stack:
            nodes = [stack.enter_context(start(number, names, script, python_path)) for number in range(len(names))]
            codes = [node.wait(PATIENCE_SECONDS) for node in nodes]
        ending = Ending.read_from(paths.node(0).ending)
        assert (codes[0], ending is None) in ((0, True), (1, False))
        return "" if ending is None else ending.reason

    def start(number: int, names: tuple[str, ...], script: str, python_path: dict[str, str]) -> subprocess.Popen[bytes]:
        inside = ["ip", "netns", "exec", names[number]] if names[number] in cluster.names else []
        words = [sys.executable, "-P", "-c", script, str(paths.output)]
        env = {**cluster.environment, "PYTHONPATH": python_path.get(names[number], "")}
        meeting = f"{cluster.address('slurm1')}:28111"
        return subprocess.Popen([*inside, *words, meeting, *names, "--node", str(number)], env=env)

    return told


@pytest.mark.slow
@pytest.mark.xdist_group("slurm")
def test_a_node_without_a_network(cluster: Cluster, preflight: Callable[..., str]) -> None:
    run("ip", "-n", "slurm2", "link", "set", "fabric0", "down")
    try:
        assert preflight("slurm1", "slurm2", hello=6.0) == "preflight: node slurm2 does not reach slurm1"
    finally:
        run("ip", "-n", "slurm2", "link", "set", "fabric0", "up")


@pytest.mark.slow
@pytest.mark.xdist_group("slurm")
def test_two_nodes_that_reach_the_first_and_not_each_other(cluster: Cluster, preflight: Callable[..., str]) -> None:
    run("ip", "-n", "slurm2", "route", "add", "unreachable", f"{cluster.network}.1")
    try:
        reason = preflight("slurm1", "slurm2", "login")
    finally:
        run("ip", "-n", "slurm2", "route", "del", "unreachable", f"{cluster.network}.1")
    assert "slurm2 does not reach login" in reason
    assert "node slurm1" not in reason


@pytest.mark.slow
@pytest.mark.xdist_group("slurm")
@pytest.mark.parametrize(
    ("torch", "says"),
    [
        ("raise OSError('libnccl.so.2: cannot open')", "OSError: libnccl.so.2: cannot open"),
        ("import time; time.sleep(100)", "it did not come within 2 s"),
    ],
)
def test_a_node_without_a_torch_that_works(
    cluster: Cluster, preflight: Callable[..., str], tmp_path: Path, torch: str, says: str
) -> None:
    """On the other node there is one that comes at once."""
    (tmp_path / "works" / "torch").mkdir(parents=True)
    for file in ("works/torch/__init__.py", "works/torch/distributed.py"):
        (tmp_path / file).touch()
    (tmp_path / "torch.py").write_text(torch + "\n")
    reason = preflight("slurm1", "slurm2", slurm1=str(tmp_path / "works"), slurm2=str(tmp_path))
    assert reason == f"preflight: node slurm2 cannot load torch: {says}"


def test_the_network_has_twenty_seconds() -> None:
    assert rollcall.HELLO_SECONDS + 2 * rollcall.REACH_SECONDS + rollcall.REDUCE_SECONDS <= 20


# --- the verdict ------------------------------------------------------------------------------------------------------


def roll(**known: object) -> Roll:
    found = Roll(["a", "b", "c"], addresses={0: "", 1: "", 2: ""})
    found.unreachable = {0: [], 1: [], 2: []}
    found.loaded = {0: None, 1: None, 2: None}
    found.reduced = {number: {"seconds": 0.001} for number in range(3)}
    for name, value in known.items():
        setattr(found, name, value)
    return found


def test_nothing_is_wrong() -> None:
    assert roll().verdict() is None


def test_the_node_that_most_failed_pairs_share_is_the_bad_one() -> None:
    verdict = roll(unreachable={0: [1], 1: [0, 2], 2: [1]}).verdict()
    assert verdict is not None
    assert verdict.startswith("node b is cut off from others: ")


def test_a_node_that_did_not_come_back() -> None:
    assert roll(reduced={0: {"seconds": 1}, 2: {"seconds": 1}}).verdict() == (
        "node b did not answer in time in the all-reduce"
    )


def test_a_node_with_an_error_of_its_own_before_those_who_miss_it() -> None:
    waiting = {"error": f"meeting {WITH_OTHERS} took longer than 9 s"}
    told = {0: waiting, 1: {"error": "ArithmeticError: the sum is wrong"}, 2: waiting}
    assert roll(reduced=told).verdict() == "node b: ArithmeticError: the sum is wrong"
    verdict = roll(reduced={0: waiting, 1: waiting, 2: waiting}).verdict()
    assert verdict is not None
    assert all(f"node {name}: meeting" in verdict for name in "abc")
