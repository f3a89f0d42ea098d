"""Several nodes: which link leads where, where they meet, and how their endings become one."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from dtrain.errors import RunFailed
from dtrain.launch import nodes
from dtrain.launch.api import Job
from dtrain.launch.ending import DONE, FAILED, INTERRUPTED, Ending
from dtrain.launch.network import free_port, interface_of, link_towards
from dtrain.launch.node import node_number
from dtrain.launch.nodes import Verdict
from dtrain.launch.spec import LaunchSpec, at_place, environment, spec_for, torchrun_command
from dtrain.paths import RunPaths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    RunPaths(tmp_path).run.mkdir()
    return RunPaths(tmp_path)


def ended(paths: RunPaths, number: int, code: int, when: float, reason: str = "why") -> None:
    Ending(code, reason, 1, when).write_to(paths.node(number).ending)


# --- the network ------------------------------------------------------------------------------------------------------


def test_the_link_towards_this_machine_is_its_loopback() -> None:
    link = link_towards("127.0.0.1")
    assert (link.address, link.interface) == ("127.0.0.1", "lo")
    assert interface_of("192.0.2.1") is None


def test_a_name_nobody_has_is_told() -> None:
    with pytest.raises(RunFailed, match=r"no route to nowhere\.invalid"):
        link_towards("nowhere.invalid")


def test_the_interface_is_the_routes_unless_somebody_said_another() -> None:
    spec = LaunchSpec("id", (), (), 1, "cuda", "/")
    assert environment(spec, {}, "ib0")["NCCL_SOCKET_IFNAME"] == "=ib0"
    assert environment(spec, {}, "ib0")["GLOO_SOCKET_IFNAME"] == "ib0"
    assert environment(spec, {"NCCL_SOCKET_IFNAME": "eth7"}, "ib0")["NCCL_SOCKET_IFNAME"] == "eth7"


def test_a_free_port_is_free() -> None:
    assert free_port("127.0.0.1") > 1024


def test_addresses_of_both_families() -> None:
    assert nodes.parted(nodes.joined("10.0.0.1", 29500)) == ("10.0.0.1", 29500)
    assert nodes.parted(nodes.joined("fe80::1", 29500)) == ("fe80::1", 29500)


# --- torchrun ---------------------------------------------------------------------------------------------------------


def test_the_command_of_several_nodes_is_filled_in_where_it_runs() -> None:
    command = torchrun_command(Job("id", "name", Path("/run"), 2, 8, "cuda"))
    here = at_place(command, "10.0.0.1:2000", False, "10.0.0.2")
    told = dict(pairwise(here))
    assert (told["--nnodes"], told["--nproc-per-node"], told["--rdzv-id"]) == ("2", "8", "id")
    assert (told["--rdzv-endpoint"], told["--local-addr"]) == ("10.0.0.1:2000", "10.0.0.2")
    assert told["--rdzv-conf"] == "is_host=0"
    assert "is_host=1" in at_place(command, "10.0.0.1:2000", True, "10.0.0.1")


def test_the_node_number_is_told_or_slurm_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    with pytest.raises(RunFailed, match="nobody told which node"):
        node_number(None)
    monkeypatch.setenv("SLURM_NODEID", "3")
    assert (node_number(None), node_number(1)) == (3, 1)


# --- one ending -------------------------------------------------------------------------------------------------------


def test_done_when_all_are(paths: RunPaths) -> None:
    for number in range(2):
        ended(paths, number, DONE, 5.0)
    ending = nodes.end(paths, ["a", "b"], Verdict())
    assert isinstance(ending, Ending)
    assert Ending.read(paths) == ending
    assert (ending.code, ending.reason) == (DONE, "done")


def test_what_came_first_is_the_reason(paths: RunPaths) -> None:
    ended(paths, 0, FAILED, 9.0, "rank 0: connection reset")
    ended(paths, 1, FAILED, 5.0, "rank 3: out of memory")
    ending = nodes.end(paths, ["a", "b"], Verdict(again=True))
    assert isinstance(ending, Ending)
    assert (ending.code, ending.reason) == (FAILED, "rank 3: out of memory")


def test_an_interrupted_run_goes_on_or_says_why_not(paths: RunPaths) -> None:
    ended(paths, 0, INTERRUPTED, 5.0, "stopped")
    ended(paths, 1, FAILED, 6.0, "rank 3: connection reset")
    assert nodes.end(paths, ["a", "b"], Verdict(again=True)) == nodes.AGAIN
    assert not paths.exit.exists()
    ending = nodes.end(paths, ["a", "b"], Verdict(note="the cap"))
    assert isinstance(ending, Ending)
    assert (ending.code, ending.reason) == (INTERRUPTED, "stopped; the cap")


def test_a_failed_run_has_as_many_lives_as_it_may(paths: RunPaths) -> None:
    """Each must get further than the one before."""
    paths.config.write_text("base_model: x\ndatasets: [{path: y, type: alpaca}]\nlearning_rate: 1\nmax_restarts: 2\n")
    verdicts = []
    for restarts, step in enumerate((3, 5, 5)):
        paths.state.write_text(json.dumps({"step": step}))
        Ending(FAILED, "rank 1 was killed", step, 10.0 + restarts).write_to(paths.node(0).ending)
        ended(paths, 1, DONE, 11.0)
        told = nodes.end(paths, ["a", "b"], Verdict(restarts=restarts))
        verdicts.append(told if isinstance(told, str) else told.code)
        assert paths.exit.exists() == (verdicts[-1] == FAILED)
    assert verdicts == [nodes.RESTART, nodes.RESTART, FAILED]


def test_no_life_is_begun_where_the_road_cannot(paths: RunPaths) -> None:
    paths.config.write_text("base_model: x\ndatasets: [{path: y, type: alpaca}]\nlearning_rate: 1\nmax_restarts: 2\n")
    ended(paths, 0, FAILED, 1.0)
    ended(paths, 1, DONE, 2.0)
    assert isinstance(nodes.end(paths, ["a", "b"], Verdict()), Ending)


def test_a_node_that_says_nothing(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "LATE_WORD_SECONDS", 0.0)
    ended(paths, 0, DONE, 5.0)
    assert nodes.end(paths, ["a", "b"], Verdict(again=True, told=True)) == nodes.AGAIN
    ending = nodes.end(paths, ["a", "b"], Verdict())
    assert isinstance(ending, Ending)
    assert "node b ended without a word" in ending.reason


def test_a_life_begins_clean_and_a_finished_run_not_again(paths: RunPaths) -> None:
    ended(paths, 0, FAILED, 1.0)
    paths.state.write_text("{}")
    assert nodes.begin(paths, ["here"], restarted=True) is not None
    assert not paths.node(0).ending.exists()
    assert (paths.past / "1" / "state.json").exists()
    Ending(INTERRUPTED, "why", 1, 1.0).write(paths)
    assert nodes.begin(paths, ["here"], restarted=False) is None
    assert nodes.begin(paths, ["here"], restarted=True) is not None
    Ending(DONE, "why", 1, 1.0).write(paths)
    assert nodes.begin(paths, ["here"], restarted=True) is None


def test_launch_json_says_how_many(tmp_path: Path) -> None:
    spec = spec_for(Job("id", "name", tmp_path, 4, 8, "cuda"))
    assert json.loads(spec.as_text())["nodes"] == 4
