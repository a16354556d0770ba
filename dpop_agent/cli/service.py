"""`service` and its verbs, and `stop`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

from dpop_agent import config, paths
from dpop_agent.cli import arguments, calls, installed, output, unit_files, units
from dpop_agent.cli.systemctl import Systemd
from dpop_agent.errors import AgentUnavailable, ConfigurationError, ServiceFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping
    from typing import Any

NOT_RUNNING = 3
"""The exit status of `service status` then: as LSB has it, and everybody here where no agent is."""

END_S = 15.0
"""Seconds that an agent has to end once it was told to: its own times, together, and some more."""

_UNITS = (units.SERVICE, units.SOCKET)


def add_service(parser: arguments.Parser) -> None:
    """`dpop-agent service` and its verbs."""
    parser.description = "Have systemd run the agent: start it when it is needed, and keep it up."
    verbs = parser.add_verbs()
    for name, what, run, more in (
        (
            "install",
            "Make the agent a service that starts with the first use of its socket",
            _install,
            "Configuration, ledger and keys stay as they are; so it does after an upgrade too.",
        ),
        (
            "uninstall",
            "End the service and remove it",
            _uninstall,
            "Configuration, ledger and keys stay where they are.",
        ),
        ("start", "Start it, its sockets too", _start, ""),
        ("stop", "End it, its sockets too, so that nothing starts it", _stop_service, ""),
        ("restart", "End and start it; clients wait meanwhile", _restart, ""),
        ("status", "Show whether it is there and runs", _status, "Exit status 3 if not."),
        ("log", "Show what it said", _log, ""),
        ("print", "Show what install would write, and write nothing", _print, ""),
    ):
        verb = arguments.add_verb(verbs, name, what, run, more)
        verb.add_argument(
            "--system",
            action="store_true",
            help=f"the machine's, which runs as the user {units.USER} for programs of that user; "
            "only root can change it",
        )
        if name == "log":
            verb.add_argument(
                "--follow", action="store_true", help="go on with what comes, until Ctrl-C"
            )
        if name in ("install", "uninstall"):
            verb.add_argument(
                "--discard-changes",
                action="store_true",
                help="also where a unit was changed by hand since it was installed",
            )


def add_stop(parser: arguments.Parser) -> None:
    """`dpop-agent stop`."""
    parser.description = (
        "End the agent in order: what is under way is finished first. One that runs as the user's "
        "service is ended as dpop-agent service stop does it, for else its socket would start it "
        "again."
    )
    arguments.add_json(parser)
    parser.set_defaults(run=_stop)


def _install(args: Namespace) -> int:
    if args.system:
        from dpop_agent.cli import system_service

        return system_service.install(args)
    systemd = _systemd(args)
    before = systemd.show(units.SOCKET, "ActiveState")
    wanted = _wanted()
    for unit in _UNITS:
        path = unit_files.unit_path(unit)
        unit_files.refuse_another(path, systemd)
        unit_files.refuse_changed(path, discard=args.discard_changes)
    if before["ActiveState"] != "active":
        _refuse_agent_at(paths.agent_socket())
    written = [path for path, text in wanted.items() if unit_files.write_unit(path, text)]
    systemd.do("daemon-reload")
    systemd.do("enable", "--quiet", units.SOCKET)
    if written:
        systemd.do("stop", *_UNITS)
    systemd.must_start("restart", *_UNITS)
    lingers = _lingers()
    result = {"written": written, "units": list(wanted), "lingers": lingers}
    lines = [f"wrote {path}" for path in written] or [unit_files.UNCHANGED]
    lines += [
        f"it serves {paths.agent_socket()}, and from your next login on starts with its first use",
        "it runs without a login too, from the machine's start on"
        if lingers
        else "it ends with your last login; to have it from the machine's start on: loginctl "
        "enable-linger",
        "after an upgrade:  dpop-agent service install",
        "undo:  dpop-agent service uninstall   (configuration, ledger and keys stay)",
    ]
    return calls.answer(args, result, [output.plain(line) for line in lines])


def _uninstall(args: Namespace) -> int:
    if args.system:
        from dpop_agent.cli import system_service

        return system_service.uninstall(args)
    systemd = _systemd(args)
    there = [unit for unit in _UNITS if os.path.lexists(unit_files.unit_path(unit))]
    if not there:
        raise _not_installed()
    for unit in there:
        unit_files.refuse_changed(unit_files.unit_path(unit), discard=args.discard_changes)
    unit_files.remove([unit_files.unit_path(unit) for unit in there], systemd)
    removed = [unit_files.unit_path(unit) for unit in there]
    left = f"{paths.config_file()}, {paths.state_folder()} and the keys in their stores"
    lines = ["it has ended", *(f"removed {path}" for path in removed), f"left:  {left}"]
    return calls.answer(args, {"removed": removed}, [output.plain(line) for line in lines])


def _start(args: Namespace) -> int:
    _installed(args).must_start("start", *_units_of(args))
    return calls.answer(args, {"running": True}, ["it runs"])


def _stop_service(args: Namespace) -> int:
    option = _option(args)
    _installed(args).do("stop", *_units_of(args))
    comes_back = "the machine's next start" if args.system else "your next login"
    lines = [f"it has ended until {comes_back}, or: dpop-agent service start{option}"]
    return calls.answer(args, {"running": False}, lines)


def _restart(args: Namespace) -> int:
    _installed(args).must_start("restart", *_units_of(args))
    return calls.answer(args, {"running": True}, ["it runs anew"])


def _option(args: Namespace) -> str:
    """What a command of the machine's service has at its end."""
    return " --system" if args.system else ""


def _units_of(args: Namespace) -> tuple[str, ...]:
    return (units.SERVICE,) if args.system else _UNITS


def _status(args: Namespace) -> int:
    systemd = _systemd(args)
    wanted = ("ActiveState", "MainPID", "FragmentPath", "UnitFileState", "Result", "StatusText")
    service = systemd.show(units.SERVICE, *wanted)
    socket = None if args.system else systemd.show(units.SOCKET, *wanted)
    path = service["FragmentPath"] or None
    waits = service["ActiveState"] == "inactive" and socket and socket["ActiveState"] == "active"
    shown: dict[str, Any] = {
        "unit": path,
        "changed": path is not None and unit_files.state_of(path) != "ours",
        "enabled": (socket or service)["UnitFileState"] == "enabled",
        "socket": socket and socket["ActiveState"],
        "service": service["ActiveState"],
        "result": service["Result"],
        "reason": service["StatusText"] or None,
        "pid": int(service["MainPID"] or 0) or None,
        "lingers": None if args.system else _lingers(),
        "outdated": not args.system and path is not None and _is_outdated(),
    }
    calls.answer(args, shown, [output.plain(line) for line in _status_lines(shown, _option(args))])
    return 0 if waits or service["ActiveState"] == "active" else NOT_RUNNING


def _is_outdated() -> bool:
    """Whether this version, with its configuration of now, would write other units."""
    try:
        return any(unit_files.read(path) != text for path, text in _wanted().items())
    except ConfigurationError:
        return False  # which is told where it is in the way


def _status_lines(shown: Mapping[str, Any], option: str) -> list[str]:
    if shown["unit"] is None:
        return [f"no service is installed; to have one: dpop-agent service install{option}"]
    pid = f", process {shown['pid']}" if shown["pid"] else ""
    waits = ", until its socket is used" if shown["socket"] == "active" else ""
    lines = [
        f"unit     {shown['unit']}" + (", changed by hand" if shown["changed"] else ""),
        f"enabled  {'yes' if shown['enabled'] else 'no'}",
    ]
    if shown["socket"] is not None:
        lines.append(f"socket   {shown['socket']}")
    lines.append(f"service  {shown['service']}{pid or waits}")
    if shown["lingers"] is not None:
        lines.append(f"lingers  {'yes' if shown['lingers'] else 'no: loginctl enable-linger'}")
    if shown["outdated"]:
        discard = " --discard-changes" if shown["changed"] else ""
        lines.append(
            f"the units aren't what install would write now: dpop-agent service install{discard}"
        )
    if shown["result"] not in ("", "success"):
        why = shown["reason"] or f"it ended by: {shown['result']}"
        lines.append(f"{why}; all that it said: dpop-agent service log{option}")
    return lines


def _log(args: Namespace) -> int:
    said = _installed(args).said(units.SERVICE, follow=args.follow, as_json=args.json)
    try:
        return subprocess.run(said, stdin=subprocess.DEVNULL, check=False).returncode
    except FileNotFoundError as e:
        raise ServiceFailed("there is no journalctl here", hint="install systemd's") from e


def _print(args: Namespace) -> int:
    if args.system:
        from dpop_agent.cli import system_service

        return system_service.show(args)
    if sys.platform == "darwin":
        text = units.plist(units.users_places()).decode()
        return calls.answer(args, {"files": {units.PLIST: text}}, [text])
    wanted = _wanted()
    return calls.answer(
        args, {"files": wanted}, [f"# {path}\n{text}" for path, text in wanted.items()]
    )


def _stop(args: Namespace) -> int:
    if _serves_here():
        Systemd(system=False).do("stop", *_UNITS)
        lines = [
            "it was the service: it has ended, its sockets too, and comes back at your next login, "
            "or with: dpop-agent service start"
        ]
        return calls.answer(args, {"service": True}, lines)
    try:
        pid = calls.admin_call("stop", {})["pid"]
    except AgentUnavailable as e:
        raise AgentUnavailable(e.message, hint="there is nothing to end") from e
    _wait_for_end(pid)
    return calls.answer(
        args, {"service": False, "pid": pid}, [f"the agent has ended, process {pid}"]
    )


def _serves_here() -> bool:
    """Whether the user's service has the agent's socket, running or not."""
    try:
        text = unit_files.read(unit_files.unit_path(units.SOCKET)) or ""
        if units.listen_stream(paths.agent_socket()) not in text.splitlines():
            return False
        return Systemd(system=False).show(units.SOCKET, "ActiveState")["ActiveState"] == "active"
    except (OSError, ServiceFailed, ConfigurationError):
        return False


def _wait_for_end(pid: int) -> None:
    """Wait until it has ended, so that another can start at once."""
    import select

    from dpop_agent.cli.waiting import Waiting

    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, ProcessLookupError):  # no Linux; or it has
        return
    try:
        with Waiting("waiting for the agent to end"):
            ended, _, _ = select.select([descriptor], [], [], END_S)
    finally:
        os.close(descriptor)
    if not ended:
        raise ServiceFailed(
            f"the agent, process {pid}, is still ending", hint=f"to end it at once: kill {pid}"
        )


def _wanted() -> dict[str, str]:
    """The user's units, by their paths.

    Raises:
        ConfigurationError: no agent could be started by them, or not for long.
    """
    found, places = config.load(), units.users_places()
    again = shlex.quote(installed.requirement())
    for what, path, instead in (
        ("this program", sys.prefix, f"install it elsewhere, such as: pipx install {again}"),
        ("this program", os.path.dirname(paths.__file__), "install it elsewhere"),
        ("the configuration", places.config, paths.ANOTHER_CONFIG_FILE),
        ("the state folder", places.state, paths.ANOTHER_STATE_FOLDER),
        ("the socket", places.socket, "unset DPOP_AGENT_SOCK"),
    ):
        unit_files.require_lasting(what, path, instead)
    paths.check_socket_path(paths.mounted_socket(places.socket))
    unit_files.require_credentials(found, places)
    texts = {
        units.SOCKET: units.users_socket(places),
        units.SERVICE: units.users_service(found, places),
    }
    return {unit_files.unit_path(unit): unit_files.marked(text) for unit, text in texts.items()}


def _refuse_agent_at(path: str) -> None:
    from dpop_agent.client.sync import AgentClient

    try:
        with AgentClient(path) as agent:
            pid = agent.status().get("pid")
    except (AgentUnavailable, FileNotFoundError):
        return
    raise ConfigurationError(
        f"an agent serves {path} already, process {pid}", hint="end it first: dpop-agent stop"
    )


def _installed(args: Namespace) -> Systemd:
    systemd = _systemd(args)
    if not systemd.show(units.SERVICE, "FragmentPath")["FragmentPath"]:
        raise _not_installed(_option(args))
    return systemd


def _not_installed(option: str = "") -> ConfigurationError:
    return ConfigurationError(
        "no service is installed", hint=f"to have one: dpop-agent service install{option}"
    )


def _lingers() -> bool:
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False
    return os.path.exists(f"/var/lib/systemd/linger/{name}")


def _systemd(args: Namespace) -> Systemd:
    if sys.platform == "darwin":
        raise ServiceFailed(
            "on macOS this program doesn't install itself: that was never tried on a Mac",
            hint=f"by hand: dpop-agent service print > {units.PLIST}, and then: "
            f"launchctl bootstrap gui/{os.getuid()} {units.PLIST}",
        )
    return Systemd(system=args.system)
