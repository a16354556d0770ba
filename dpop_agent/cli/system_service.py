"""`service install | uninstall | print --system`: the machine's agent, for servers.

systemd doesn't listen for it: clients use only an agent of their own uid, and what systemd listens
at would be root's.
"""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
import sys

from dpop_agent import config, paths
from dpop_agent.cli import calls, installed, unit_files, units
from dpop_agent.cli.systemctl import Systemd
from dpop_agent.errors import ConfigurationError, ServiceFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

_UNIT = os.path.join(units.SYSTEM_UNITS, units.SERVICE)

_PROGRAM = "/opt/dpop-agent"
_Step = list[str] | tuple[str, str] | str
"""A command's words, a file's path and text, or a line for a shell."""

_FOR_ROOT = "# to be run as root, one after the other: where one fails, correct that first"

_ENABLE = ["systemctl", "enable", "--now", units.SERVICE]
_RELOAD = ["systemctl", "daemon-reload"]


def install(args: Namespace) -> int:
    """As root do it; as anybody else print what root has to do."""
    places = units.systems_places()
    if os.getuid() != 0:
        return _for_root(args, _steps(places))
    systemd = Systemd(system=True)
    unit_files.refuse_another(_UNIT, systemd)
    unit_files.refuse_changed(_UNIT, discard=args.discard_changes)
    found = _configuration(places)
    _require_roots(places)
    unit_files.require_credentials(found, places)
    for words in (*_user(places), *_readable(places)):
        _run(words)
    text = unit_files.marked(units.systems_service(found, places))
    written = unit_files.write_unit(_UNIT, text)
    systemd.do("daemon-reload")
    systemd.do("enable", "--quiet", units.SERVICE)
    systemd.must_start("restart", units.SERVICE)
    lines = [
        f"wrote {_UNIT}" if written else unit_files.UNCHANGED,
        f"it serves {places.socket} as the user {units.USER}, for programs of that user, such as "
        f"units with User={units.USER}",
        "undo:  dpop-agent service uninstall --system   (configuration, ledger and keys stay)",
        *_pcscd(found),
    ]
    return calls.answer(args, {"written": [_UNIT] if written else []}, lines)


def uninstall(args: Namespace) -> int:
    """The same, the other way."""
    if not os.path.lexists(_UNIT):
        raise ConfigurationError(
            "no service is installed", hint="to have one: dpop-agent service install --system"
        )
    unit_files.refuse_changed(_UNIT, discard=args.discard_changes)
    if os.getuid() != 0:
        disable = ["systemctl", "disable", "--now", units.SERVICE]
        return _for_root(args, [disable, ["rm", _UNIT], _RELOAD])
    systemd = Systemd(system=True)
    unit_files.remove([_UNIT], systemd)
    places = units.systems_places()
    left = f"{os.path.dirname(places.config)}, {places.state} and the user {units.USER}"
    return calls.answer(
        args, {"removed": [_UNIT]}, ["it has ended", f"removed {_UNIT}", f"left:  {left}"]
    )


def show(args: Namespace) -> int:
    """What root would have to do."""
    script = "\n".join([_FOR_ROOT, *_lines(_steps(units.systems_places()))])
    return calls.answer(args, {"script": script}, [script])


def _steps(places: units.Places) -> list[_Step]:
    """All that root has to do, from the program's own installation on where it isn't root's."""
    steps: list[_Step] = []
    if not _is_machines(os.path.dirname(paths.__file__)):
        steps += _program()
        places.python = f"{_PROGRAM}/bin/python"
    try:
        found = config.load(places.config)
    except ConfigurationError:  # there is none yet, or it is for root to read
        found = None
        if not os.path.lexists(places.config):
            dpop_agent = shlex.join([*places.command, "init"])
            steps.append(f"DPOP_AGENT_CONFIG={places.config} {dpop_agent}")
    steps += [*_user(places), *_readable(places)]
    steps.append((_UNIT, unit_files.marked(units.systems_service(found, places))))
    if units.wants_pcscd(found):
        steps.append((units.POLKIT_RULE, units.polkit_rule()))
    return [*steps, _RELOAD, _ENABLE]


def _program() -> list[list[str]]:
    """What installs this program where root alone can change it."""
    return [
        ["python3", "-m", "venv", _PROGRAM],
        [f"{_PROGRAM}/bin/pip", "install", installed.requirement()],
    ]


def _configuration(places: units.Places) -> config.Config:
    try:
        return config.load(places.config)
    except ConfigurationError as e:
        if os.path.lexists(places.config):
            raise
        raise ConfigurationError(
            e.message, hint=f"write one with: DPOP_AGENT_CONFIG={places.config} dpop-agent init"
        ) from None


def _require_roots(places: units.Places) -> None:
    """Refuse a program that others than root can change, or that is in somebody's home."""
    instead = (
        f"install it for the machine: {' && '.join(map(shlex.join, _program()))}; then say this "
        f"with {_PROGRAM}/bin/dpop-agent"
    )
    for path in (places.python, os.path.dirname(paths.__file__)):
        paths.check_only_ours(path, "the program", instead=instead)
        if not _is_machines(path):
            raise ConfigurationError(
                f"the program is in a place that isn't the machine's: {os.path.realpath(path)}",
                hint=instead,
            )


def _is_machines(path: str) -> bool:
    real = os.path.realpath(path)
    if any(
        unit_files.is_below(real, folder) for folder in ("/home", "/root", *unit_files.VANISHING)
    ):
        return False
    return os.stat(real).st_uid == 0


def _user(places: units.Places) -> list[list[str]]:
    try:
        pwd.getpwnam(units.USER)
    except KeyError:
        home = ["--home-dir", places.state, "--no-create-home", "--shell", "/usr/sbin/nologin"]
        return [["useradd", "--system", "--user-group", *home, units.USER]]
    return []


def _readable(places: units.Places) -> list[list[str]]:
    """For its user, and nobody else, the configuration is to be read."""
    both = [os.path.dirname(places.config), places.config]
    return [["chgrp", units.USER, *both], ["chmod", "g=rX,o=", *both]]


def _pcscd(found: config.Config | None) -> list[str]:
    if not units.wants_pcscd(found):
        return []
    rule = units.polkit_rule().rstrip()
    return [f"# for cards behind pcscd, which asks polkit: {units.POLKIT_RULE}\n{rule}"]


def _for_root(args: Namespace, steps: Sequence[_Step]) -> int:
    """Print them, and say that nothing was done."""
    script = "\n".join(_lines(steps))
    calls.answer(args, {"script": script}, [script])
    sys.stdout.flush()
    raise ConfigurationError(
        "nothing was done: only root can change the machine's services",
        hint="as root, run what was printed",
    )


def _lines(steps: Sequence[_Step]) -> list[str]:
    return [_line(step) for step in steps]


def _line(step: _Step) -> str:
    if isinstance(step, str):
        return step
    if isinstance(step, list):
        return shlex.join(step)
    path, text = step
    return f"cat > {path} <<'END'\n{text.rstrip()}\nEND"


def _run(words: list[str]) -> None:
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as e:
        raise ServiceFailed(f"there is no {words[0]} here", hint="install it") from e
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise ServiceFailed(f"{shlex.join(words)}: {said}", hint="correct that, and try again")
