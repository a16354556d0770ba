"""`config` and its verbs: `show`, `check`, `path`; and what changes of it are checked for."""

from __future__ import annotations

import os
import stat
import sys

from dpop_agent import config, paths
from dpop_agent.cli import arguments, editing, output, setting
from dpop_agent.cli.discovery import ALONE, keychain, or_variable, tokens
from dpop_agent.errors import ConfigurationError, DPoPAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping, Sequence

    _Problems = list[tuple[str, str]]
    """What is wrong, and what to do about it."""

KEYCHAIN = "keychain"
EXPORTABLE = "keys in the keychain are exportable: any program of yours can read them there"


def add_config(parser: arguments.Parser) -> None:
    """`dpop-agent config` and its verbs."""
    parser.description = "Show, check, change or find the configuration."
    verbs = parser.add_verbs()
    arguments.add_verb(verbs, "show", "Show what the configuration says", _show)
    arguments.add_verb(
        verbs,
        "check",
        "Check that it can work here: files, their owners and modes, and each store",
        _check,
        "Stores are looked for by their modules, in processes of their own; nobody logs in.",
    )
    editing.add_edit(verbs, _check_change)
    setting.add_set(verbs, _check_change)
    setting.add_unset(verbs, _check_change)
    arguments.add_verb(verbs, "path", "Show where it is", _path)


def _show(args: Namespace) -> int:
    found = config.load()
    if args.json:
        output.print_json(
            {
                "path": found.path,
                "default_store": found.default_store,
                "max_connections": found.max_connections,
                "max_socket_connections": found.max_socket_connections,
                "max_waiting": found.max_waiting,
                "lock_after_s": found.lock_after_s,
                "release_after_s": found.release_after_s,
                "audit": found.audit,
                "audit_mib": found.audit_mib,
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
    size = f", {found.audit_mib} MiB a file" if found.audit != "off" else ""
    lines.append(f"audit          {found.audit}{size}")
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
    } | ({"signers": str(store.signers)} if store.signers > 1 else {})


def _check(args: Namespace) -> int:
    loaded = config.load()
    problems, found = _place_problems() + _confirm_command_problems(loaded.confirm_command), {}
    for store in loaded.stores.values():
        of_store, place = _problems(store)
        problems += [(f"stores.{store.name}: {problem}", hint) for problem, hint in of_store]
        if place is not None:
            found[store.name] = place
    if not args.json:
        for name, place in found.items():
            print(output.plain(f"{name}: found {place}"))
        if not problems:
            print(output.plain(f"{loaded.path} is fine"))
    elif not problems:
        output.print_json({"path": loaded.path, "problems": [], "found": found})
    if not problems:
        return 0
    *others, (last, hint) = problems
    if not args.json:
        sys.stdout.flush()
        for problem, what_next in others:
            print(output.plain(f"dpop-agent: {problem}; {what_next}"), file=sys.stderr)
    details = {"problems": [what for what, _ in problems], "found": found}
    raise ConfigurationError(last, hint=hint, details=details)


def _check_change(new: config.Config, old: config.Config | None) -> None:
    """Refuse what a change brings: what it leaves as it is may be unplugged just now."""
    problems: _Problems = []
    if old is None or new.confirm_command != old.confirm_command:
        problems += _confirm_command_problems(new.confirm_command)
    for name, store in new.stores.items():
        before = old.stores.get(name) if old is not None else None
        if store == before or not (of_store := _problems(store)[0]):
            continue
        known = [what for what, _ in _problems(before)[0]] if before is not None else []
        problems += [(f"stores.{name}: {w}", hint) for w, hint in of_store if w not in known]
    if not problems:
        return
    *others, (last, hint) = problems
    for problem, what_next in others:
        print(output.plain(f"dpop-agent: {problem}; {what_next}"), file=sys.stderr)
    raise ConfigurationError(last, hint=hint, details={"problems": [what for what, _ in problems]})


def _place_problems() -> _Problems:
    """What is wrong with the folders of the ledger and of the sockets."""
    state, socket = paths.state_folder(), paths.agent_socket()

    def check_socket() -> None:
        paths.check_socket_path(socket)
        paths.check_socket_folder(socket)

    return _problem_of(
        lambda: paths.check_only_ours(state, "the state folder", instead=paths.ANOTHER_STATE_FOLDER)
    ) + _problem_of(check_socket)


def _confirm_command_problems(command: Sequence[str]) -> _Problems:
    if not command:
        return []
    program = command[0]
    if not os.access(program, os.X_OK) or os.path.isdir(program):
        return [
            (
                f"agent.confirm_command: there is no program at {program}",
                "install it, correct the path, or leave it out for pinentry",
            )
        ]
    return _problem_of(lambda: config.check_confirm_program(program))


def _problem_of(check: Callable[[], None]) -> _Problems:
    try:
        check()
    except FileNotFoundError:  # it is told elsewhere, or made when it is needed
        pass
    except OSError as e:
        return [(f"{e.filename}: {e.strerror}", "correct that")]
    except DPoPAgentError as e:
        return [(e.message, e.hint)]
    return []


def _problems(store: config.StoreConfig) -> tuple[_Problems, str | None]:
    """What is wrong with a store, and what was found where it is to be."""
    if store.backend is not None:
        return _keychain_problems(store.backend, store.env)
    problems = _module_problems(store)
    place = None
    if not problems:
        problems, place = _token_problems(store)
    assert store.pin_source is not None  # PKCS#11 has one
    if store.pin_source.kind == "file":
        problems += pin_file_problems(store.pin_source.argument)
    elif store.pin_source.kind == "keychain":
        problems += _keychain_problems(config.default_backend(), store.env)[0]
    return problems, place


def _module_problems(store: config.StoreConfig) -> _Problems:
    module = store.module
    assert module is not None  # PKCS#11 has one
    if not os.path.isfile(module):
        return [(f"there is no PKCS#11 module at {module}", "install it, or correct the path")]
    if not os.access(module, os.R_OK):
        return [(f"the PKCS#11 module {module} can't be read", "check its mode")]
    return _problem_of(
        lambda: paths.check_only_ours(
            module, "the PKCS#11 module", instead="name another in module"
        )
    )


def _token_problems(store: config.StoreConfig) -> tuple[_Problems, str | None]:
    """Whether the one PKCS#11 token is there that its URI names; nobody logs in."""
    assert store.module is not None  # PKCS#11 has both
    assert store.uri is not None
    try:
        shown = tokens(store.module, store.module_args, store.env)
    except ConfigurationError as e:
        return [(e.message, e.hint)], None
    fitting = [token for token in shown if token.fits(store.uri)]
    if len(fitting) == 1:
        serial = f", serial {fitting[0].serial}" if fitting[0].serial else ""
        return [], f"PKCS#11 token {fitting[0].label!r}{serial}"
    if fitting:
        apart = config.telling_apart([token.whole_uri for token in fitting])
        return [
            (
                f"{len(fitting)} PKCS#11 tokens fit {store.uri}",
                f"give {' and '.join(apart)} in uri: dpop-agent init --dry-run shows them"
                if apart
                else ALONE,
            )
        ], None
    return [
        (
            f"not found: PKCS#11 token {store.uri}",
            f"plug it in, or correct uri{or_variable(store.module, store.env)}",
        )
    ], None


def _keychain_problems(backend: str, env: Mapping[str, str]) -> tuple[_Problems, str | None]:
    try:
        shown = keychain(backend, env)
    except ConfigurationError as e:
        return [(e.message, e.hint)], None
    label = f" {shown['label']!r}" if shown.get("label") else ""
    return [], f"keychain{label}{', locked' if shown.get('locked') else ''}"


def pin_file_problems(path: str) -> _Problems:
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
