"""The terminal that the agent was started in, if it was."""

from __future__ import annotations

import errno
import os
import signal


def ends_us() -> bool:
    """Whether there is one whose end is the agent's; nohup says that it isn't."""
    return signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _trouble() == 0


def is_lost() -> bool:
    """Whether it was closed, or let go of this session; no signal has to tell of that (tty(4))."""
    return _trouble() in (errno.ENXIO, errno.EIO)


def _trouble() -> int:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as e:
        return e.errno or errno.EIO
    return 0
