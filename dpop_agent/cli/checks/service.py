"""Whether a user unit of systemd runs the agent."""

from __future__ import annotations

from dpop_agent.cli.checks.finding import OK, WARNING, WRONG, Finding

UNIT = "dpop-agent.service"

LOOK_TIMEOUT_S = 5.0
"""What needs longer to say how a unit is hangs."""


def service() -> list[Finding]:
    """The user's unit, where there is a manager to ask; nothing of it is changed."""
    check = "service"
    shown = _shown()
    if shown is None:
        return [Finding(check, OK, "no systemd to ask for this user")]
    if shown.get("LoadState") == "not-found":
        return [Finding(check, OK, f"no user unit {UNIT}")]
    if shown.get("LoadState") != "loaded":
        mend = f"systemctl --user cat {UNIT}"
        return [Finding(check, WRONG, f"{UNIT} is {shown.get('LoadState')}: see it", mend)]
    state = shown.get("ActiveState", "unknown")
    if state == "failed":
        what = f"{UNIT} failed ({shown.get('Result', 'unknown')})"
        mend = f"journalctl --user -u {UNIT} says why; then: systemctl --user restart {UNIT}"
        return [Finding(check, WRONG, what, mend)]
    if state == "inactive":
        mend = f"systemctl --user start {UNIT}"
        return [Finding(check, WARNING, f"{UNIT} is there and doesn't run", mend)]
    return [Finding(check, OK, f"{UNIT} is {state}")]


def _shown() -> dict[str, str] | None:
    """What systemd says of the unit; None where there is no systemd, or none for this user."""
    import subprocess

    words = ["systemctl", "--user", "show", UNIT, "--property=LoadState,ActiveState,Result"]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LOOK_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = (line.partition("=") for line in done.stdout.splitlines())
    return {name: value for name, _, value in lines} or None
