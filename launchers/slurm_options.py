"""`launchers: {slurm: {…}}`: a closed set of keys, each checked before anything is asked of SLURM."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dtrain.errors import BadInput
from dtrain.launch import secrets
from dtrain.launch.machine import Machine
from dtrain.launch.tunnel import Trust

from .hosts import ENTRY_OPTIONS, NAMES, TRUST_OPTIONS, checked, read_machine, read_trust, refuse_unknown

WHERE = "launchers.slurm"


@dataclass(frozen=True)
class Login:
    """A login node of the cluster, for a launch from elsewhere."""

    machine: Machine
    trust: Trust
    secrets: tuple[str, ...] = secrets.NAMES
    """Names of environment variables that are sent along, where they are set here."""


@dataclass(frozen=True)
class SlurmOptions:
    login: Login | None = None
    """Where sbatch is; not given: here."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    """Nodes not to take, as the preflight names them."""
    time: str | None = None
    """As sbatch takes it: minutes, H:M:S or D-H:M:S. Not given: from the plan's hours, with a margin."""
    mem: str | None = None
    """Per node, as sbatch takes it. Not given: from the plan."""
    cpus_per_task: int | None = None
    """Cores of a node's whole share of the run (one task a node)."""
    gres: str | None = None
    """`gpu:a100:8` where the cluster wants GRES; not given: --gpus-per-node with the profile's number."""
    exclusive: bool = False
    seeds: tuple[int, ...] = ()
    """A job array: the same run once for each seed, in OUTPUT_DIR/seed-N."""
    signal: str = "USR1"
    """What SLURM sends to the batch script before the time limit; the other of USR1 and USR2 is `dtrain stop`'s."""
    signal_margin_seconds: int | None = None
    """How long before the limit. Not given: the plan's time of one checkpoint, and 60 s."""
    max_requeues: int = 20
    """How often a preempted or timed-out run may go on by itself; 0: never."""
    setup: tuple[str, ...] = ()
    """Lines of shell before anything of ours, such as `module load cuda`."""
    extra: tuple[str, ...] = ()
    """Lines put into the script's head as they are."""
    template: str | None = None
    """Another template than slurm/train.sbatch.j2, with the same variables."""
    grace_seconds: float | None = None
    """How long the ranks may take to save once they are told to stop. Not given: the signal's margin."""
    env: Mapping[str, str] | None = None
    """Environment of the run's processes, over the job's own."""

    @property
    def stop_signal(self) -> str:
        return "USR2" if self.signal == "USR1" else "USR1"


def read_options(told: Mapping[str, Any]) -> SlurmOptions:
    """BadInput for an unknown key (with the nearest one), and for a value that cannot be meant."""
    given = {key: value for key, value in told.items() if value is not None}
    for key, value in given.items():
        where = f"{WHERE}.{key}"
        if key not in _OPTIONS:
            near = difflib.get_close_matches(key, _OPTIONS, n=1)
            fix = f"did you mean {near[0]}?" if near else "extra: ['#SBATCH --…'] passes any line through"
            allowed = ", ".join(_OPTIONS)
            raise BadInput("SLURM's launcher has no such option", key=where, value=value, allowed=allowed, fix=fix)
        accepts, allowed, _ = _OPTIONS[key]
        if not accepts(value):
            raise BadInput("not a value for this option", key=where, value=value, allowed=allowed)
    return SlurmOptions(**{key: _OPTIONS[key][2](value) for key, value in given.items()})


def seconds_of(time: str) -> int | None:
    """SLURM's forms: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. None for UNLIMITED and INFINITE; BadInput for the rest."""
    if time.upper() in ("UNLIMITED", "INFINITE"):
        return None
    found = _TIME.fullmatch(time)
    if found is None:
        raise BadInput(
            "not a time limit", key="launchers.slurm.time", value=time, allowed="minutes, H:M:S, D-H:M:S, UNLIMITED"
        )
    days, numbers = int(found["days"] or 0), [int(number) for number in found["rest"].split(":")]
    if found["days"] is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def slurm_time(seconds: float) -> str:
    """Whole minutes, rounded up, as SLURM prints them."""
    minutes = int(-(-seconds // 60))
    days, rest = divmod(minutes, 24 * 60)
    return (f"{days}-" if days else "") + f"{rest // 60:02d}:{rest % 60:02d}:00"


_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


def _is_word(value: Any) -> bool:
    """What can stand behind `--key=` in an #SBATCH line as it is."""
    return isinstance(value, str | int) and not isinstance(value, bool) and _WORD.fullmatch(str(value)) is not None


_WORD = re.compile(r"[\w.,:;=*&|()\[\]@/+-]+")


def _is_time(value: Any) -> bool:
    return _is_word(value) and (str(value).upper() in ("UNLIMITED", "INFINITE") or bool(_TIME.fullmatch(str(value))))


def _is_count(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _are_lines(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(line, str) for line in value))


def _are_head_lines(value: Any) -> bool:
    return _are_lines(value) and not any(line.lstrip().startswith("-") for line in lines(value))


def lines(value: Any) -> tuple[str, ...]:
    """One text or a list of them, as lines."""
    texts = [value] if isinstance(value, str) else list(value)
    return tuple(line for text in texts for line in text.splitlines())


def _are_seeds(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_count(0), value)) and len(set(value)) == len(value) > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _are_variables(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and name.isidentifier() and "\0" not in str(one) for name, one in value.items()
    )


def _texts(value: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(one) for name, one in value.items()}


def _file(value: str) -> str:
    return str(Path(value).expanduser().absolute())


def _login(value: Any) -> Login:
    """`user@host`, or a mapping: an SSH host's entry, and how far to trust it."""
    where = f"{WHERE}.login"
    told = {"host": value} if isinstance(value, str) else value
    own = {"secrets": NAMES, **TRUST_OPTIONS}
    refuse_unknown(told, ENTRY_OPTIONS | own, where)
    entry = {key: one for key, one in told.items() if one is not None}
    if "host" not in entry:
        raise BadInput("no host is named", key=where, value=value, allowed=f"{where}.host: user@host:port")
    for key in own.keys() & entry.keys():
        checked(own[key], entry[key], f"{where}.{key}")
    machine = read_machine({key: one for key, one in entry.items() if key not in own}, {}, where)
    return Login(machine, read_trust(entry), tuple(entry.get("secrets", secrets.NAMES)))


_Option = tuple[Callable[[Any], bool], str, Callable[[Any], Any]]
_word: _Option = (_is_word, "a word as sbatch takes it, without spaces and quotes", str)
_OPTIONS: dict[str, _Option] = {
    "login": (
        lambda value: isinstance(value, str | Mapping),
        "user@host:port, or {host: user@host:port, key: FILE, base: /where/nodes/see/it}",
        _login,
    ),
    **dict.fromkeys(("partition", "account", "qos", "constraint", "reservation"), _word),
    **dict.fromkeys(("nodelist", "exclude", "mem", "gres"), _word),
    "time": (_is_time, "minutes, H:M:S, D-H:M:S, UNLIMITED", str),
    "cpus_per_task": (_is_count(1), "cores, 1 or more", int),
    "exclusive": (lambda value: isinstance(value, bool), "true or false", bool),
    "seeds": (_are_seeds, "a list of different whole numbers, 0 or more", tuple),
    "signal": (lambda value: value in ("USR1", "USR2"), "USR1 or USR2", str),
    "signal_margin_seconds": (lambda value: _is_count(1)(value) and value < 65_536, "seconds, 1 to 65535", int),
    "max_requeues": (_is_count(0), "0 or more", int),
    "setup": (_are_lines, "a text or a list of lines", lines),
    "extra": (_are_head_lines, "lines such as '#SBATCH --mail-type=END', with #SBATCH in front", lines),
    "template": (lambda value: isinstance(value, str) and value != "", "the path of a template", _file),
    "grace_seconds": (_is_number, "seconds, 0 or more", float),
    "env": (_are_variables, "NAME: value pairs", _texts),
}  # fmt: skip
assert set(_OPTIONS) == {option.name for option in fields(SlurmOptions)}
