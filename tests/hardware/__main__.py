"""Tries dpop-agent on a PKCS#11 token of your own, and prints a report to paste.

tests/hardware/run --module PATH --uri URI

It says before it begins what it will make there and what that can cost, and asks.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from dpop_agent import __version__, config
from dpop_agent.cli.discovery import variables_of
from dpop_agent.cli.output import fold, plain
from dpop_agent.errors import ConfigurationError
from tests.hardware.looking import Failed, Place
from tests.hardware.places import Run, labels, parent
from tests.processes import HARDWARE_RUN, ROOT

LOOK_S = 0.1
OTHER_VARIABLES = ("DBUS_SESSION_BUS_ADDRESS",)


def main() -> int:
    """Ask, try, clean up, report."""
    parser = argparse.ArgumentParser(
        prog="tests/hardware/run",
        allow_abbrev=False,
        description="Try dpop-agent on a PKCS#11 token of your own, and print a report to paste.",
    )
    parser.add_argument("--module", required=True, metavar="PATH", help="the PKCS#11 module")
    parser.add_argument("--uri", required=True, help="names the PKCS#11 token (RFC 7512)")
    parser.add_argument(
        "--module-args", default="", metavar="TEXT", help="for C_Initialize, if it wants some (NSS)"
    )
    parser.add_argument("--yes", action="store_true", help="go on without being asked")
    words = parser.parse_args()
    place = _place(words)
    seen = _looked(place)
    print(_plan(place, seen), flush=True)
    if not words.yes:
        _ask()
    pin = _pin(seen)
    run, began = Run.new(), time.monotonic()
    with _janitor(run) as janitor:
        try:
            before = place.objects(pin)
        except Failed as e:
            _refuse(
                f"the PIN wasn't accepted ({e}): that was one try, and there is no other"
                if e.pin
                else f"the PKCS#11 token can't be looked through: {e}"
            )
        run.write(place, seen, before, pin)
        told = _tried(run, janitor)
    left = janitor.left
    results = told["results"]
    print(_report(place, seen, told, left, len(before), time.monotonic() - began))
    if not left and {result["how"] for result in results} in ({"passed", "skipped"}, {"passed"}):
        return 0
    print("The tests' own words, which may name the PKCS#11 token:", file=sys.stderr)
    print(told["log"], file=sys.stderr)
    return 1


def _refuse(what: str) -> NoReturn:
    sys.exit(f"tests/hardware/run: {plain(what)}")


def _place(words: argparse.Namespace) -> Place:
    module = os.path.abspath(os.path.expanduser(words.module))
    names = (*variables_of(module), *OTHER_VARIABLES)
    env = {name: os.environ[name] for name in names if os.environ.get(name)}
    try:
        config.parse_token_uri(words.uri)
    except ConfigurationError as e:
        _refuse(str(e))
    return Place(module, words.module_args, words.uri, env)


def _looked(place: Place) -> dict[str, Any]:
    """What the PKCS#11 token says of itself, if it can be tried."""
    try:
        seen = place.look()
    except Failed as e:
        _refuse(f"{e}; nothing was made")
    if seen["pad"]:
        _refuse("it has a PIN pad, where somebody would have to type the PIN for each login")
    if seen["few_tries"]:
        _refuse(
            "it says that few PIN tries are left, or none, and none is to be spent here; log in "
            "once with its vendor's tool, so that it counts anew, and run this again"
        )
    if not seen["algs"]:
        _refuse("it can't make keys of any kind that dpop-agent uses")
    return seen


def _plan(place: Place, seen: dict[str, Any]) -> str:
    algs = seen["algs"]
    lines = [f"PKCS#11 token {seen['label']!r} ({seen['model']}), by {place.module}"]
    if seen["slots"]:
        lines += [
            "makes:    nothing, for a private key in a slot of this card can't be deleted again",
            "signs:    proofs for servers that don't exist, with a key for ES256 if one is there;",
            "          touch the card if it asks for it",
        ]
    else:
        lines += [
            f"makes:    {most(algs)} key pairs at a time at the most, {in_all(algs)} in all, for "
            f"{', '.join(algs)}; each is deleted again",
            f"labels:   {', '.join(labels(algs))}",
        ]
    lines.append(
        "PIN:      it wants none"
        if not seen["login"]
        else "PIN:      you type it once. The right one costs no try. One that isn't accepted has\n"
        "          cost one, and is never tried again: nothing else happens then"
    )
    lines += [
        "others:   what is there already is left alone; don't make keys there meanwhile",
        "ends:     with Ctrl-C at any time; it cleans up then too, and if it is killed. Should its",
        "          janitor be killed as well, delete what has these labels, and the folder",
        f"          {parent()}/dpop-hw-…, which has the PIN",
    ]
    return "\n".join(map(_plain_lines, lines))


def _plain_lines(text: str) -> str:
    return "\n".join(map(plain, text.split("\n")))


def most(algs: list[str]) -> int:
    """How many keys are there at once at the most."""
    return max(2, len(algs))


def in_all(algs: list[str]) -> int:
    """How many are made, one after the other: tests/hardware/checks.py."""
    return 2 * len(algs) + 10


def _ask() -> None:
    if not sys.stdin.isatty():
        _refuse("there is nobody to ask; if you mean it, give --yes")
    print("Go on? Type yes: ", end="", flush=True)
    if sys.stdin.readline().strip().lower() != "yes":
        _refuse("nothing was done")


def _pin(seen: dict[str, Any]) -> str | None:
    if not seen["login"]:
        return None
    pin = getpass.getpass("PIN: ")
    if not pin:
        _refuse("no PIN was typed; nothing was done")
    return pin


class _Janitor:
    """Another process, which cleans up when this one ends, however that happens.

    Attributes:
        left: what it couldn't remove, once it is over; nothing if all is gone.
    """

    def __init__(self, run: Run) -> None:
        self.left = ""
        self._told = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hardware.janitor", run.folder],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._orders = self._process.stdin

    def end_too(self, pid: int) -> None:
        """The leader of a group of processes that are to be ended first."""
        self._told = True
        self._orders.write(f"{pid}\n")
        self._orders.flush()

    def finish(self) -> None:
        out, _ = self._process.communicate("tell me" if self._told else "\ntell me")
        self.left = out.removeprefix("left behind: ").strip()


@contextmanager
def _janitor(run: Run) -> Iterator[_Janitor]:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    janitor = _Janitor(run)
    try:
        yield janitor
    except BaseException:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\ncleaning up", flush=True)
        janitor.finish()
        print(f"left behind: {janitor.left or 'nothing'}", flush=True)
        raise
    janitor.finish()


def _tried(run: Run, janitor: _Janitor) -> dict[str, Any]:
    """What the tests told."""
    with run.log.open("wb") as log:
        tests = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "tests/hardware/checks.py"),
                *("-p", "no:cacheprovider", "--basetemp", run.folder / "tests", "--tb=short"),
            ],
            cwd=ROOT,
            env=os.environ | {HARDWARE_RUN: str(run.folder), "TMPDIR": str(run.folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    janitor.end_too(tests.pid)
    shown, ended = 0, False
    while not ended:
        ended = tests.poll() is not None
        shown = _show(run, shown)
        time.sleep(LOOK_S)
    told = {
        "results": [json.loads(line) for line in run.results.read_text().splitlines()],
        "log": run.log.read_text(errors="replace"),
        "made": len(run.made.read_text()),
        "proof": "",
    }
    with suppress(FileNotFoundError):
        told["proof"] = (run.folder / "proof-ms").read_text()
    return told


def _show(run: Run, shown: int) -> int:
    """Say what has come of further checks; how many were said."""
    lines = run.results.read_text().splitlines()
    for line in lines[shown:]:
        print(_line(json.loads(line)), flush=True)
    return len(lines)


COLUMNS = 80
"""Of a report, which is pasted."""

_WHAT = 17
"""Where a line of it says what was tried."""


def _line(result: dict[str, Any]) -> str:
    why = f": {result['why']}" if result["why"] else ""
    return plain(f"{result['how']:8}{result['seconds']:5.1f} s  {result['what']}{why}")


def _report(
    place: Place,
    seen: dict[str, Any],
    told: dict[str, Any],
    left: str,
    others: int,
    seconds: float,
) -> str:
    """What can be shown to everybody."""
    results = [r | {"why": _anonymous(r["why"], place, seen)} for r in told["results"]]
    left = _anonymous(left, place, seen)
    counts = {how: sum(r["how"] == how for r in results) for how in ("passed", "failed", "skipped")}
    made = "none was made" if seen["slots"] else f"{told['made']} made"
    lines = [
        "",
        "## Report: dpop-agent on a PKCS#11 token",
        "",
        f"- module: {os.path.basename(place.module)}, {seen['library']} {seen['version']}, "
        f"PKCS#11 {seen['cryptoki']}",
        f"- token: {seen['model']}, {seen['manufacturer']}, hardware {seen['hardware']}, "
        f"firmware {seen['firmware']}; shown as {seen['protection']}",
        f"- algorithms: {', '.join(seen['algs'])}",
        f"- with: dpop-agent {__version__}{_revision()}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()} {platform.machine()}",
        f"- keys: {made}; {others} objects were there before; left behind: {left or 'nothing'}",
        f"- {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped, in "
        f"{seconds:.0f} s" + (f"; a proof took {told['proof']}" if told["proof"] else ""),
        "",
        "```",
        *(part for r in results for part in fold(_line(r), _WHAT, COLUMNS)),
        "```",
    ]
    lines = [part for line in lines for part in fold(line, 2, COLUMNS)]
    return "\n".join(map(_plain_lines, lines))


def _anonymous(text: str, place: Place, seen: dict[str, Any]) -> str:
    """Without what names this very PKCS#11 token, or its owner."""
    for own in (place.uri, seen["label"], seen["serial"], str(Path.home())):
        if own and own not in seen["model"]:
            text = re.sub(rf"(?<!\w){re.escape(own)}(?!\w)", "…", text)
    return text


def _revision() -> str:
    done = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print()
        sys.exit(130)
