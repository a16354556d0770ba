"""What a process does before it may hold a secret: unreadable to other programs of its user.

Linux alone has these calls; elsewhere `harden` does what it can, and SECURITY.md says so.
"""

from __future__ import annotations

import resource
import sys

from dpop_agent.errors import DPoPAgentError

_PR_SET_DUMPABLE = 4


class Traced(DPoPAgentError):
    """A debugger is attached, which could read every secret to come."""

    wire_type = "traced"
    default_hint = "detach the debugger and start again"


def harden() -> None:
    """Close memory, environment and descriptors to the same uid; no core files.

    A fork keeps it, `exec` undoes it. A descriptor on this process's memory that was opened before
    still works, but shows nothing of a process that is forked after this.

    Raises:
        Traced: a tracer is attached.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    _prctl(_PR_SET_DUMPABLE, 0)
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("TracerPid:") and line.split()[1] != "0":
                raise Traced(f"process {line.split()[1]} is tracing this one")


def text_of(secret: bytes) -> str | None:
    """A secret as text; None if it isn't UTF-8. No exception holds it, as Python's own would."""
    try:
        return secret.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _prctl(option: int, value: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")
