"""Checks of the agent that runs, as its clients see it."""

from __future__ import annotations

import os
import stat
import time
from shlex import quote

from dpop_agent import __version__, paths
from dpop_agent.cli.checks.finding import OK, WARNING, WRONG, Finding, of_error
from dpop_agent.cli.checks.setup import edit, no_socket, status_of
from dpop_agent.cli.discovery import variables_of
from dpop_agent.cli.output import many
from dpop_agent.client.connection import connect
from dpop_agent.client.sync import AgentClient
from dpop_agent.errors import DPoPAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from dpop_agent.config import Config

    Status = dict[str, Any]

CHECK = "agent"

RESTART = "dpop-agent stop; then: dpop-agent serve; or, as a service: dpop-agent service restart"

_UNTESTED = {
    "no_key": "no self-test: no key in it signs",
    "attended": "no self-test: each key in it wants a touch, a consent or its PIN",
    "stale": "no self-test: its card was put in anew since it was opened",
    "busy": "no self-test: it signs for others all the time",
    "not_open": "no self-test: it is left to other programs now",
}

_LIVE = ("staged", "active", "draining")

STARTS_S = 5.0
"""Seconds that stores have to be opened in; slow cards take 4."""

MAX_NAMED = 8
"""Keys that one finding names."""


def agent(path: str) -> tuple[Status | None, Finding]:
    """What the agent at a socket says of itself, and whether a client gets that far."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return None, no_socket(CHECK, path)
    except OSError:
        pass
    try:
        with AgentClient(path) as client:
            status = _settled(client)
    except DPoPAgentError as e:
        return None, of_error(CHECK, e)
    what = f"version {status['agent']}, process {status['pid']}, at {path}"
    if "ledger" not in status:
        return status, Finding(
            CHECK,
            WARNING,
            f"{what}; that socket gives some keys' proofs alone, so little of it can be seen",
            "outside of a sandbox: unset DPOP_AGENT_SOCK",
        )
    if status["agent"] != __version__:
        what += f"; this command is version {__version__}"
        return status, Finding(CHECK, WARNING, what, RESTART)
    return status, Finding(CHECK, OK, what)


def _settled(client: AgentClient) -> Status:
    """What it says once its stores are open, or aren't: to ask may have started it."""
    until = time.monotonic() + STARTS_S
    while True:
        status = status_of(client)
        starting = any(store.get("state") == "starting" for store in status["stores"])
        if not starting or time.monotonic() > until:
            return status
        time.sleep(0.05)


def is_understood(status: Status | None) -> bool:
    """Whether an agent of this version said it, on a socket that shows all."""
    return status is not None and "ledger" in status and status["agent"] == __version__


def elsewhere(state_folder: str, path: str) -> list[Finding]:
    """An agent with that state folder that serves another socket than the one where none is."""
    from dpop_agent.agent.ledger import LOCK
    from dpop_agent.agent.lock import served_with

    found = served_with(os.path.join(state_folder, LOCK))
    if found is None or found[1] == path or paths.socket_at(found[1]) is None:
        return []
    try:
        with AgentClient(found[1]) as client:
            client.hello()
    except DPoPAgentError:
        return []
    what = f"process {found[0]} serves that state folder at another socket, {found[1]}"
    return [Finding(CHECK, WRONG, what, f"export DPOP_AGENT_SOCK={quote(found[1])}")]


def sockets(path: str) -> list[Finding]:
    """Whether clients reach the agent's other sockets: the very checks that they make."""
    found = []
    for check, place in (
        ("admin.sock", paths.admin_socket(path)),
        ("mount", paths.mounted_socket(path)),
    ):
        try:
            sock = connect(place)
        except DPoPAgentError as e:
            found.append(of_error(check, e))
            continue
        if sock is not None:
            sock.close()
        found.append(Finding(check, OK, place))
    return found


def configured(status: Status, found: Config | None, path: str) -> list[Finding]:
    """Whether the agent has read the configuration that is here."""
    check = "configuration"
    if not os.path.exists(status["config"]):
        return []
    is_here = os.path.exists(path)
    if not is_here or not os.path.samefile(path, status["config"]):
        what = f"the agent reads another one, {status['config']}"
        if not is_here:
            what = f"there is none at {path}; {what}"
        mend = f"export DPOP_AGENT_CONFIG={quote(os.path.abspath(status['config']))}"
        return [Finding(check, WARNING, what, mend)]
    if found is None:
        return []
    here = {store.name: (store.type, store.module) for store in found.stores.values()}
    there = {store["store"]: (store["type"], store["module"]) for store in status["stores"]}
    if changed := sorted(dict(here.items() ^ there.items())):
        what = f"the agent hasn't read it since it changed: {', '.join(changed)}"
        return [Finding(check, WARNING, what, "dpop-agent reload")]
    return []


def opened(shown: dict[str, Any], path: str) -> list[Finding]:
    """A self-test of a store that the agent has open, and what is wrong with it all the same.

    Args:
        shown: it, as `status` has it.
        path: `agent.sock`.
    """
    found = [_tested(shown["store"], path)]
    if shown.get("signers_reason"):
        what = f"fewer signers than {shown['signers']}: {shown['signers_reason']}"
        mend = shown["signers_hint"] or ""
        found.append(Finding(f"stores.{shown['store']}", WARNING, what, mend))
    return found


def closed(shown: dict[str, Any], env: dict[str, str], *, is_there: bool) -> Iterator[Finding]:
    """Why the agent doesn't have a store open.

    Args:
        shown: it, as `status` has it.
        env: what its configuration gives its signer.
        is_there: its place was found, by this command.
    """
    name, state = shown["store"], shown["state"]
    check = f"stores.{name}"
    if state == "starting":
        yield Finding(check, WARNING, "it is being opened", "wait, then again: dpop-agent doctor")
    elif state == "locked":
        yield Finding(check, WARNING, f"{shown['reason']}", shown["hint"] or "")
    elif is_there:
        what = f"it is there, and the agent couldn't use it: {shown['reason']}"
        mend = "dpop-agent reload"
        lacks = [
            variable
            for variable in variables_of(shown["module"] or "")
            if os.environ.get(variable) and variable not in env
        ]
        if lacks:
            mend += f"; if it stays so, put {' and '.join(lacks)} of this terminal into its env"
        yield Finding(check, WRONG, what, mend)
    else:
        what = f"the agent couldn't use it: {shown['reason']}"
        yield Finding(check, WRONG, what, "once that is mended: dpop-agent reload")


def _tested(name: str, path: str) -> Finding:
    check = f"stores.{name}"
    try:
        with AgentClient(paths.admin_socket(path), timeout=30) as admin:
            result = admin.call("store.self_test", {"store": name})
    except DPoPAgentError as e:
        return Finding(check, WRONG, f"its self-test failed: {e.message}", e.hint)
    if result["reason"] is not None:
        return Finding(check, OK, f"open; {_UNTESTED.get(result['reason'], result['reason'])}")
    return Finding(check, OK, f"open, and {result['key']}@{result['generation']} signs (self-test)")


def keys(path: str, status: Status) -> Iterator[Finding]:
    """Which generations are missing, and which private keys nobody knows, as it was seen last."""
    from dpop_agent.agent.labels import named_by

    check = "keys"
    missing: list[str] = []
    idle: list[str] = []
    try:
        with AgentClient(path) as client:
            listed = client.keys()
    except DPoPAgentError as e:
        yield of_error(check, e)
        return
    if homeless := [key["key"] for key in listed if key["store_state"] is None]:
        stores = {key["store"] for key in listed if key["store_state"] is None}
        what = f"{_named(homeless)}: the configuration has no store {' and '.join(sorted(stores))}"
        mend = f"add it, under that name; {edit(status['config'])}"
        yield Finding(check, WRONG, what, mend)
    for key in listed:
        for g in key["generations"]:
            if g["missing"] and g["state"] != "destroyed":
                which = f"{key['key']}@{g['generation']}"
                (missing if g["state"] in _LIVE else idle).append(which)
    for level, names in ((WRONG, missing), (WARNING, idle)):
        if names:
            what = f"{_named(names)}: missing, its store has no such key"
            mend = (
                "bring back what its store had, then: dpop-agent reload; or, if it is gone for "
                f"good: dpop-agent key destroy {names[0]}"
            )
            yield Finding(check, level, what, mend)
    unknown = 0
    for store in status["stores"]:
        unknown += store["unknown_count"]
        lost = [found["label"] for found in store["unknown"] if named_by(found["label"])]
        if lost:
            what = (
                f"{store['store']}: {many(len(lost), 'private key')} that an agent made and the "
                f"ledger doesn't list: {_named(lost)}"
            )
            mend = f"after a lost ledger: dpop-agent key adopt --all --store {store['store']}"
            yield Finding(check, WARNING, what, mend)
    if not (missing or idle or homeless):
        others = f"; {unknown} that aren't the agent's, left alone" if unknown else ""
        yield Finding(check, OK, f"{many(len(listed), 'key')}, none missing{others}")


def _named(names: list[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def itself(status: Status) -> list[Finding]:
    """What the agent says of its audit and its processes."""
    found = []
    if status.get("forking_pid", 0) is None:
        what = "the process that starts signers has ended"
        found.append(Finding(CHECK, WRONG, what, RESTART))
    audit = status.get("audit") or {"mode": "off"}
    if audit["mode"] == "off":
        found.append(Finding("audit", OK, "off"))
    elif audit["failing"] is not None:
        level = WRONG if audit["mode"] == "required" else WARNING
        mend = f"free space, or: chmod u+rwx {quote(audit['folder'])}"
        found.append(Finding("audit", level, f"it can't be written: {audit['failing']}", mend))
    else:
        lost = f"; {audit['lost']} lines couldn't be written before" if audit["lost"] else ""
        found.append(Finding("audit", OK, f"{audit['mode']}, in {audit['folder']}{lost}"))
    return found
