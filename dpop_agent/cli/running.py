"""A command that runs beneath this process, which passes signals on and ends as it does."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager

from dpop_agent.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

NOT_RUN, NOT_FOUND, SIGNALLED = 126, 127, 128
"""Exit statuses as shells have them: it can't be run, there is none, and a signal's number more."""

_PASSED_ON = {
    *(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),
}
_AWAITED = _PASSED_ON | {signal.SIGCHLD, signal.SIGALRM}
_IGNORED_HERE = (signal.SIGPIPE, signal.SIGXFSZ)
"""What Python ignores, and no command expects to be."""

_FROM_THE_TERMINAL = 0x80  # SI_KERNEL: the command's process group has it already


class Beneath:
    """Runs commands while signals are kept for them."""

    def __init__(self, before: set[signal.Signals]) -> None:
        self._before = before

    def run(
        self,
        command: list[str],
        environment: Mapping[str, str],
        *,
        within_s: float = 0,
        too_long: Callable[[int], None] | None = None,
    ) -> int:
        """Run it; its exit status, as shells have it.

        Args:
            command: its words.
            environment: all of it.
            within_s: seconds after which `too_long` gets its pid, if that is given.
            too_long: what happens then.
        """
        try:
            pid = os.posix_spawnp(
                command[0],
                command,
                environment,
                setsigmask=self._before,
                setsigdef=_IGNORED_HERE,
            )
        except OSError as e:
            return not_run(command[0], e)
        if too_long is not None:
            signal.setitimer(signal.ITIMER_REAL, max(within_s, 0.001))
        while True:
            number, from_the_terminal = _next_signal()
            if number == signal.SIGALRM:
                if too_long is not None:
                    too_long(pid)
            elif number != signal.SIGCHLD:
                if not from_the_terminal:
                    os.kill(pid, number)
            elif (ended := os.waitpid(pid, os.WNOHANG))[0]:
                signal.setitimer(signal.ITIMER_REAL, 0)
                if signal.SIGALRM in signal.sigpending():  # it came meanwhile, and would end this
                    signal.sigwait({signal.SIGALRM})
                code = os.waitstatus_to_exitcode(ended[1])
                return code if code >= 0 else SIGNALLED - code


def hear_of_ends() -> None:
    """Be told how a child ended, though whoever started this process wants that of none of his own:
    an ignored SIGCHLD is inherited, and then nobody learns it.
    """
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def hear_of_pipes() -> None:
    """Have what this process is about to become end as it would without it."""
    for number in _IGNORED_HERE:
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def beneath() -> Iterator[Beneath]:
    """Keep signals, from before there is a command: none ends this process and leaves that."""
    hear_of_ends()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    try:
        yield Beneath({signal.Signals(number) for number in before})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def not_run(program: str, error: OSError) -> int:
    """Say that a command can't be run; the exit status for that."""
    print(output.plain(f"dpop-agent: {program} can't be run: {error.strerror}"), file=sys.stderr)
    return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUN


def _next_signal() -> tuple[int, bool]:
    """The next signal, and whether the terminal sent it, to the command too."""
    if hasattr(signal, "sigwaitinfo"):
        info = signal.sigwaitinfo(_AWAITED)
        return info.si_signo, info.si_code == _FROM_THE_TERMINAL
    number = signal.sigwait(_AWAITED)
    return number, number in (signal.SIGINT, signal.SIGQUIT)
