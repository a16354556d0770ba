"""Whether the user's service runs the agent, where there is one."""

from __future__ import annotations

from dpop_agent.cli.checks.finding import OK, WARNING, WRONG, Finding
from dpop_agent.cli.systemctl import GONE, INSTALL, NO_PROGRAM, Systemd
from dpop_agent.cli.units import SERVICE, SOCKET
from dpop_agent.errors import ServiceFailed, Timeout

_START = "dpop-agent service start"
_SHOWN = ("LoadState", "ActiveState", "Result", "StatusText", "ExecMainStatus")
_SEE_WHY = "see why: dpop-agent service log"


def service() -> list[Finding]:
    """The user's unit, where there is a service manager to ask."""
    check, systemd = "service", Systemd(system=False)
    try:
        shown = systemd.show(SERVICE, *_SHOWN)
        socket = systemd.show(SOCKET, "ActiveState")["ActiveState"]
    except Timeout as e:
        return [Finding(check, WRONG, e.message, e.hint)]
    except ServiceFailed:
        return [Finding(check, OK, "there is no service manager of this user's to ask")]
    loaded, state = shown["LoadState"], shown["ActiveState"]
    if loaded in ("", "not-found"):
        return [Finding(check, OK, "none is installed")]
    if loaded != "loaded":
        mend = f"systemctl --user cat {SERVICE}"
        return [Finding(check, WRONG, f"systemd can't read {SERVICE} ({loaded})", mend)]
    if state != "active" and shown["ExecMainStatus"] == NO_PROGRAM:
        return [Finding(check, WRONG, f"{SERVICE} doesn't start: {GONE}", INSTALL)]
    for unit, its in ((SERVICE, state), (SOCKET, socket)):
        if its == "failed":
            why = shown["StatusText"] or shown["Result"]
            what = f"{unit} failed" + (f": {why}" if unit == SERVICE else "")
            return [Finding(check, WRONG, what, f"{_SEE_WHY}; once that is mended: {_START}")]
    if state == "inactive" and socket != "active":
        return [Finding(check, WARNING, f"{SERVICE} is installed and doesn't run", _START)]
    return [Finding(check, OK, f"{SERVICE} is {state}")]
