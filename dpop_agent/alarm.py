"""A bound on what has none of its own, in a process's main thread."""

from __future__ import annotations

import signal
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn


@contextmanager
def limited(seconds: float, error: type[Exception]) -> Iterator[None]:
    """Interrupt by SIGALRM what takes longer, with that error; some calls can't be interrupted."""

    def end(*_: object) -> NoReturn:
        raise error

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
