"""`doctor`: the whole local chain, each link with its mend."""

from __future__ import annotations

import os

from dpop_agent import paths
from dpop_agent.cli import arguments, output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from dpop_agent.cli.checks.finding import Finding
    from dpop_agent.cli.checks.running import Status
    from dpop_agent.config import Config


def add_doctor(parser: arguments.Parser) -> None:
    """`dpop-agent doctor`."""
    parser.description = (
        "Look through all that a proof needs on this machine: configuration, files and folders, "
        "modules, PKCS#11 tokens and their PINs, the agent, its sockets, stores and keys, service, "
        "clock, libraries, leftovers. Each is a line, and below it what mends it. Nobody logs in, "
        "nothing is changed, and no secret is shown. Each open store makes one signature that is "
        "no proof, which the audit has as store.self_test. Exit status: 0 sound, 1 something is "
        "wrong; a warning is worth knowing, and doesn't fail."
    )
    arguments.add_json(parser)
    parser.set_defaults(run=_doctor)


def _doctor(args: Namespace) -> int:
    from dpop_agent.cli.checks.finding import OK, WARNING, WRONG
    from dpop_agent.cli.waiting import Waiting

    found: list[Finding] = []
    findings = _findings()
    while True:
        with Waiting("looking further"):
            finding = next(findings, None)
        if finding is None:
            break
        found.append(finding)
        if not args.json:
            print("\n".join(finding.lines), flush=True)
    levels = [finding.level for finding in found]
    wrong, warnings = levels.count(WRONG), levels.count(WARNING)
    if args.json:
        listed = [finding._asdict() for finding in found]
        output.print_json(
            {"sound": not wrong, "wrong": wrong, "warnings": warnings, "findings": listed}
        )
        return int(wrong > 0)
    rest = f"{output.many(warnings, 'warning')}, {levels.count(OK)} ok"
    print(f"\n{wrong} wrong, {rest}; mend from the top" if wrong else f"\nsound: {rest}")
    return int(wrong > 0)


def _findings() -> Iterator[Finding]:
    """Each as soon as it is known, in the order in which they are to be mended."""
    from dpop_agent.cli.checks import leftovers, machine, running, service, setup

    yield from machine.libraries()
    socket, config_file = paths.agent_socket(), paths.config_file()
    status, seen = running.agent(socket)
    ledger = None if status is None else status.get("ledger")
    state = paths.state_folder() if ledger is None else os.path.dirname(ledger)
    # What a filtered socket or another version says isn't enough, or isn't known, here.
    of_agent = status if running.is_understood(status) else None
    config, found = setup.configuration(config_file)
    other = [] if of_agent is None else running.configured(of_agent, config, config_file)
    if not other or os.path.exists(config_file):
        yield from found
    yield from other
    yield from setup.state_folder(state)
    yield from _ledger(state)
    yield from setup.socket_folder(socket)
    if config is not None and status is None:
        yield from machine.open_files(config, filtered=0)
    yield from (status is None and running.elsewhere(state, socket)) or [seen]
    yield from service.service()
    if of_agent is not None:
        yield from running.sockets(socket)
        yield from running.itself(of_agent)
    yield from _stores(config, of_agent, state, socket)
    if of_agent is not None:
        yield from running.keys(socket, of_agent)
    yield from machine.clock(state, [] if of_agent is None else of_agent["origins"])
    yield from leftovers.leftovers(
        state_folder=state,
        agent_socket=socket,
        stores=_names(config, of_agent),
        runs=status is not None,
    )


def _ledger(folder: str) -> Iterator[Finding]:
    """Whether an agent could start on it."""
    from dpop_agent.cli.checks.finding import OK, Finding, of_error
    from dpop_agent.cli.ledger import reading
    from dpop_agent.errors import DPoPAgentError

    check = "ledger"
    try:
        found = reading(folder)
    except DPoPAgentError as e:
        yield of_error(check, e)
        return
    if not found.is_there:
        yield Finding(check, OK, "none yet, so no key is known")
        return
    count = output.many(len(found.contents.keys), "key")
    old = "" if found.is_current else "; of an older version, which the agent replaces"
    yield Finding(check, OK, f"{found.path}, {count}{old}")


def _stores(
    config: Config | None, status: Status | None, state: str, socket: str
) -> Iterator[Finding]:
    """Each store: what it is by itself, and as the agent has it."""
    from dpop_agent.cli.checks import running, setup
    from dpop_agent.cli.checks.finding import OK, Finding

    if config is None:
        return
    shown = {} if status is None else {store["store"]: store for store in status["stores"]}
    # First: once another program selected a card, as the look does, it wants its PIN anew.
    opened = {
        name: running.opened(its, socket) for name, its in shown.items() if its["state"] == "ready"
    }
    for store in config.stores.values():
        its = shown.get(store.name)
        found, place = setup.store(
            store,
            config.path,
            state_folder=state,
            state=None if its is None else its["state"],
        )
        if place is not None:
            yield Finding(f"stores.{store.name}", OK, place)
        yield from found
        if store.name in opened:
            yield from opened[store.name]
        elif its is not None:
            yield from running.closed(its, dict(store.env), is_there=place is not None)


def _names(config: Config | None, status: Status | None) -> set[str] | None:
    if config is None:
        return None
    return {*config.stores, *(s["store"] for s in (status or {}).get("stores", ()))}
