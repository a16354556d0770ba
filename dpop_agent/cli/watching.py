"""`status --watch`: the agent's status again and again, and what changed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque

from dpop_agent.cli import output
from dpop_agent.errors import DPoPAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Self

    from dpop_agent.client import AgentClient

    Status = dict[str, Any]

RESIZE_LOOK_S = 0.1
"""Seconds between looks whether the terminal has another size."""

MAX_CHANGES = 6
"""Changes that are shown, the latest."""

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?7l", "\x1b[?7h\x1b[?1049l"
"""The terminal's other screen, on which lines that are too long are cut; and back (xterm)."""

_HOME, _BLANK, _BLANK_REST = "\x1b[H", "\x1b[K", "\n\x1b[J"
"""For writing over the screen line by line: to see an empty one in between would be a flicker."""


def lines_of_json(agent: AgentClient, seconds: float) -> None:
    """Print a line of JSON at first and for each change, until somebody interrupts it.

    Raises:
        DPoPAgentError: as `watch`.
    """
    import json

    found, before = agent.status(), None
    while True:
        if before != (now := _steady(found)):
            print(json.dumps(found), flush=True)
            before = now
        time.sleep(seconds)
        try:
            found = agent.status()
        except DPoPAgentError as e:
            found = {"error": e.to_wire()}


def watch(agent: AgentClient, seconds: float, lines: Callable[[Status, str], list[str]]) -> None:
    """Show it at the terminal, as `lines` of the status and the socket, until somebody interrupts.

    The agent is asked what it knows: no store is looked at for that.

    Raises:
        DPoPAgentError: no agent is there at first, or none that can be asked.
    """
    seen = agent.status()
    start = seen.get("proofs") or 0
    began = time.strftime("%H:%M:%S")
    changed: deque[str] = deque(maxlen=MAX_CHANGES)
    away: str | None = None
    with _Screen() as screen:
        while True:
            now = time.strftime("%H:%M:%S")
            try:
                found = agent.status()
            except DPoPAgentError as e:
                if away is None:
                    changed.append(f"{now}  the agent is away")
                away = str(e)
            else:
                if away is not None:
                    changed.append(f"{now}  the agent is back")
                    away = None
                if found.get("pid") != seen.get("pid"):
                    start = 0
                changed += [f"{now}  {what}" for what in changes(seen, found)]
                seen = found
            more = output.many((seen.get("proofs") or 0) - start, "proof")
            head = [f"{now}, every {seconds:g} s until Ctrl-C; {more} since {began}"]
            if away is not None:
                head += output.sentence(f"the agent is away: {away}", colour=output.BAD)
            screen.show(head, lines(seen, agent.path), list(changed))
            screen.wait(seconds)


def changes(before: Status, after: Status) -> Iterator[str]:
    """What is another way than before, but for what changes all the time. Pure."""
    if before.get("pid") != after.get("pid"):
        yield f"the agent was started anew, pid {after.get('pid')}"
    old, new = ({s["store"]: s for s in one.get("stores") or ()} for one in (before, after))
    for name in [*old, *(name for name in new if name not in old)]:
        was, now = (stores[name]["state"] if name in stores else "gone" for stores in (old, new))
        if now != was:
            yield f"store {name}: {now}" + (f", was {was}" if name in old else "")
    for member, came, went in (
        ("sockets", "socket {}: there", "socket {}: gone"),
        ("rotations_due", "rotation due: {}", "rotation no longer due: {}"),
        ("destroyed", "destroyed: {}", "no longer destroyed: {}"),
    ):
        were, are = (one.get(member) or () for one in (before, after))
        yield from (came.format(name) for name in are if name not in were)
        yield from (went.format(name) for name in were if name not in are)
    known = {origin["origin"] for origin in before.get("origins") or ()}
    for origin in after.get("origins") or ():
        if origin["origin"] not in known:
            yield f"new server: {origin['origin']}"
    failed, fails = ((one.get("audit") or {}).get("failing") for one in (before, after))
    if fails != failed:
        yield f"the audit can't be written: {fails}" if fails else "the audit is written again"


def _steady(found: Status) -> Status:
    """What isn't another way each time that it is asked for."""
    origins = [
        {
            name: value
            for name, value in origin.items()
            if not name.endswith(("_age_s", "_offset_s"))
        }
        for origin in found.get("origins") or ()
    ]
    left_out = ("connections", "leases", "leases_count")
    return {name: value for name, value in found.items() if name not in left_out} | {
        "origins": origins
    }


class _Screen:
    """The terminal's other screen, which it leaves however it ends."""

    def __enter__(self) -> Self:
        sys.stdout.flush()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(number, self._part)
        self._write(_ENTER)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._write(_LEAVE)

    def _part(self, number: int, _: object) -> None:
        """Leave before the signal does what it does; after Ctrl-Z the process may come back."""
        self._write(_LEAVE)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._part)
        self._write(_ENTER)

    @staticmethod
    def _write(text: str) -> None:
        # Not by sys.stdout, which a signal may have interrupted.
        left = text.encode(sys.stdout.encoding, "backslashreplace")
        while left:
            left = left[os.write(sys.stdout.fileno(), left) :]

    def show(self, head: list[str], body: list[str], changed: list[str]) -> None:
        """Write over what was there: of a body that is too long the beginning."""
        self._size = os.get_terminal_size(sys.stdout.fileno())
        rows = self._size.lines or 24
        end = output.folded(["", output.paint("CHANGES", output.HEAD), *map(output.plain, changed)])
        head, body = output.folded(head), ["", *output.folded(body)]
        room = max(0, rows - len(head) - len(end) * bool(changed))
        if len(body) > room:
            body = [*body[: max(0, room - 1)], f"… {len(body) - room + 1} more lines"][:room]
        lines = [*head, *body, *(end if changed else ())][:rows]
        text = _HOME + "\n".join(_BLANK + line for line in lines)
        self._write(text + _BLANK_REST * (len(lines) < rows))

    def wait(self, seconds: float) -> None:
        """So long, or until the terminal has another size."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if os.get_terminal_size(sys.stdout.fileno()) != self._size:
                return
            time.sleep(min(left, RESIZE_LOOK_S))
