"""`config show | check | path`."""

from __future__ import annotations

import os
import stat
import sys

from dpop_agent import config, paths
from dpop_agent.cli import arguments, output
from dpop_agent.cli.discovery import keychain
from dpop_agent.errors import ConfigurationError, DPoPAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping

KEYCHAIN = "keychain"
EXPORTABLE = "keys in the keychain are exportable: any program of yours can read them there"


def add_config(parser: arguments.Parser) -> None:
    """`dpop-agent config` and its verbs."""
    parser.description = "Show, check or find the configuration."
    verbs = parser.add_verbs()
    arguments.add_verb(verbs, "show", "Show what the configuration says", _show)
    arguments.add_verb(
        verbs, "check", "Check that it can work here: files, their owners and modes", _check
    )
    arguments.add_verb(verbs, "path", "Show where it is", _path)


def _show(args: Namespace) -> int:
    found = config.load()
    if args.json:
        output.print_json(
            {
                "path": found.path,
                "default_store": found.default_store,
                "max_connections": found.max_connections,
                "lock_after_s": found.lock_after_s,
                "release_after_s": found.release_after_s,
                "stores": [
                    {"store": store.name, "type": store.type}
                    | _settings(store)
                    | {"env": dict(store.env)}
                    for store in found.stores.values()
                ],
            }
        )
        return 0
    lines = [f"configuration  {found.path}", f"default store  {found.default_store}"]
    if found.max_connections is not None:
        lines.append(f"connections    {found.max_connections} at most")
    for what, idle_s in (
        ("lock after", found.lock_after_s),
        ("release after", found.release_after_s),
    ):
        lines.append(f"{what:13}  {'never' if idle_s is None else output.duration(idle_s)}")
    for store in found.stores.values():
        lines += [
            "",
            f"store {store.name} ({store.type})",
            *(f"  {name:11}  {value}" for name, value in _settings(store).items()),
            *(f"  env          {name}={value}" for name, value in store.env.items()),
        ]
        if store.type == KEYCHAIN:
            lines.append(f"  note         {EXPORTABLE}")
    print("\n".join(map(output.plain, lines)))
    return 0


def _settings(store: config.StoreConfig) -> dict[str, str]:
    """What the store's type has beyond name and environment."""
    return {
        name: str(value)
        for name in (
            *("module", "module_args", "uri", "pin_source", "login_retries", "verify"),
            "backend",
        )
        if (value := getattr(store, name))
    }


def _check(args: Namespace) -> int:
    found = config.load()
    problems = _place_problems() + [
        (f"stores.{store.name}: {problem}", hint)
        for store in found.stores.values()
        for problem, hint in _problems(store)
    ]
    if not problems:
        if args.json:
            output.print_json({"path": found.path, "problems": []})
        else:
            print(f"{output.plain(found.path)} is fine: {', '.join(found.stores)}")
        return 0
    *others, (last, hint) = problems
    if not args.json:
        for problem, what_next in others:
            print(output.plain(f"dpop-agent: {problem}; {what_next}"), file=sys.stderr)
    raise ConfigurationError(last, hint=hint, details={"problems": [what for what, _ in problems]})


def _place_problems() -> list[tuple[str, str]]:
    """What is wrong with the folders of the ledger and of the sockets."""
    state, socket = paths.state_folder(), paths.agent_socket()

    def check_socket() -> None:
        paths.check_socket_path(socket)
        paths.check_socket_folder(socket)

    return _problem_of(
        lambda: paths.check_only_ours(state, "the state folder", instead=paths.ANOTHER_STATE_FOLDER)
    ) + _problem_of(check_socket)


def _problem_of(check: Callable[[], None]) -> list[tuple[str, str]]:
    try:
        check()
    except FileNotFoundError:  # it is told elsewhere, or made when it is needed
        pass
    except OSError as e:
        return [(f"{e.filename}: {e.strerror}", "correct that")]
    except DPoPAgentError as e:
        return [(e.message, e.hint)]
    return []


def _problems(store: config.StoreConfig) -> list[tuple[str, str]]:
    if store.backend is not None:
        return _keychain_problems(store.backend, store.env)
    assert store.module is not None  # PKCS#11 has all three
    assert store.pin_source is not None
    problems: list[tuple[str, str]] = []
    if not os.path.isfile(store.module):
        problems.append(
            (f"there is no PKCS#11 module at {store.module}", "install it, or correct the path")
        )
    elif not os.access(store.module, os.R_OK):
        problems.append((f"the PKCS#11 module {store.module} can't be read", "check its mode"))
    module = store.module
    problems += _problem_of(
        lambda: paths.check_only_ours(
            module, "the PKCS#11 module", instead="name another in module"
        )
    )
    if store.pin_source.kind == "file":
        problems += pin_file_problems(store.pin_source.argument)
    elif store.pin_source.kind == "keychain":
        problems += _keychain_problems(config.default_backend(), store.env)
    return problems


def _keychain_problems(backend: str, env: Mapping[str, str]) -> list[tuple[str, str]]:
    try:
        keychain(backend, env)
    except ConfigurationError as e:
        return [(e.message, e.hint)]
    return []


def pin_file_problems(path: str) -> list[tuple[str, str]]:
    """What is wrong with a file that is to have a PIN, each with what to do about it."""
    try:
        info = os.stat(path)
    except OSError as e:
        return [
            (
                f"the PIN file {path} can't be read: {e.strerror}",
                f"write the PIN into it: (umask 077; cat > {path})",
            )
        ]
    if not stat.S_ISREG(info.st_mode):
        return [(f"the PIN file {path} isn't a file", "name another")]
    problems = _problem_of(
        lambda: paths.check_only_ours(path, "the PIN file", instead="name another in pin_source")
    )
    if info.st_mode & 0o077 and not problems:
        problems.append(
            (
                f"the PIN file {path} has mode {stat.S_IMODE(info.st_mode):04o}: "
                "others can read it",
                f"chmod 600 {path}",
            )
        )
    if info.st_size == 0:
        problems.append((f"the PIN file {path} is empty", "write the PIN into it"))
    return problems


def _path(args: Namespace) -> int:
    path = paths.config_file()
    if args.json:
        output.print_json({"path": path})
    else:
        print(path)
    return 0
