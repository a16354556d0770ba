"""Checks of what the machine and the installation give: open files, libraries, the clock."""

from __future__ import annotations

import os
import re
import sys
import time

from dpop_agent.cli.checks.finding import OK, WARNING, WRONG, Finding, of_error
from dpop_agent.cli.checks.setup import edit
from dpop_agent.cli.output import many, span
from dpop_agent.cli.status import clock_trouble
from dpop_agent.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dpop_agent.config import Config

WRITTEN = 1_767_225_600
"""2026-01-01, in seconds since 1970: no clock that is right is behind that."""

LATER_S = 60
"""Seconds by which a file may be of later than now: file servers have clocks of their own."""

_SET_CLOCK = "timedatectl set-ntp true"

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)>=([0-9.]+)(?:; sys_platform == .([a-z0-9]+).)?")
"""A line of the package's metadata; those of its extras look otherwise."""


def open_files(found: Config, *, filtered: int) -> list[Finding]:
    """Whether an agent that is started here may open as many files as it needs."""
    from dpop_agent.agent.descriptors import USUAL_CONNECTIONS, make_room, open_now

    check = "open files"
    try:
        room = make_room(
            found.max_connections,
            each=found.max_socket_connections,
            signers=sum(store.signers for store in found.stores.values()),
            filtered=filtered,
            others=open_now(),
        )
    except ConfigurationError as e:
        return [of_error(check, e, edit(found.path))]
    what = f"room for {room.agent} connections on agent.sock, {room.each} on each further socket"
    usual = found.max_connections or USUAL_CONNECTIONS
    if room.agent < usual:
        mend = "raise the limit of open files (ulimit -Hn; LimitNOFILE= in a unit)"
        return [Finding(check, WARNING, f"{what}, rather than {usual}", mend)]
    return [Finding(check, OK, what)]


def libraries() -> list[Finding]:
    """Which versions there are, and whether they are those that this version needs."""
    from importlib import metadata

    from dpop_agent import __version__

    check, found = "libraries", []
    python = ".".join(map(str, sys.version_info[:3]))
    versions = [f"dpop-agent {__version__}", f"Python {python}"]
    try:
        needed = metadata.requires("dpop-agent") or []
    except metadata.PackageNotFoundError:
        mend = "pip install . where its source is"
        return [Finding(check, WARNING, f"{', '.join(versions)}, not installed by pip", mend)]
    for line in needed:
        requirement = _REQUIREMENT.fullmatch(line)
        if requirement is None or requirement[3] not in (None, sys.platform):
            continue
        name, least = requirement[1], requirement[2]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or _numbers(version) < _numbers(least):
            what = f"{name} {version or 'is missing'}; {least} or later is needed"
            mend = f"{sys.executable} -m pip install '{name}>={least}'"
            found.append(Finding(check, WRONG, what, mend))
        else:
            versions.append(f"{name} {version}")
    return [*found, Finding(check, OK, ", ".join(versions))]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", version)[:3]]


def clock(state_folder: str, origins: list[dict[str, Any]]) -> list[Finding]:
    """Whether this machine's clock can be right: by itself, by what the agent wrote, and by what
    servers said.
    """
    check, now = "clock", time.time()
    if now < WRITTEN:
        day = time.strftime("%Y-%m-%d", time.gmtime(now))
        return [Finding(check, WRONG, f"it says {day}, before this was written", _SET_CLOCK)]
    from dpop_agent.agent.ledger import FILE, USES

    found = []
    for name in (FILE, USES):
        try:
            ahead_s = os.stat(os.path.join(state_folder, name)).st_mtime - now
        except OSError:
            continue
        if ahead_s > LATER_S:
            what = f"{name} is of {span(ahead_s)} from now: the clock was set back, or is wrong"
            found.append(Finding(check, WARNING, what, _SET_CLOCK))
            break
    for origin in origins:
        found += [Finding(check, WARNING, line, _SET_CLOCK) for line in clock_trouble(origin)]
    if found:
        return found
    told = sum(origin.get("clock_offset_s") is not None for origin in origins)
    by = f"as {many(told, 'server')} said" if told else "no server has said its time yet"
    return [Finding(check, OK, f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(now))} UTC, {by}")]
