"""`config` and its verbs: `show`, `check`, `path`; and what changes of it are checked for."""

from __future__ import annotations

import sys

from dpop_agent import config, paths
from dpop_agent.cli import arguments, editing, output, setting
from dpop_agent.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from dpop_agent.cli.checks.finding import Finding

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
        "Check that it can work here: files and folders above them, each store, the socket's place",
        _check,
        "Stores are looked for by their modules, in processes of their own, and PIN files are read "
        "as a login would; nobody logs in. Once the agent runs, dpop-agent doctor says more.",
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
    from dpop_agent.cli.checks import setup
    from dpop_agent.cli.checks.finding import OK, WRONG, Finding

    path, socket, state = paths.config_file(), paths.agent_socket(), paths.state_folder()
    loaded, findings = setup.configuration(path)
    if loaded is None:
        (unreadable,) = findings
        raise ConfigurationError(unreadable.what, hint=unreadable.mend)
    findings += setup.state_folder(state) + setup.socket_folder(socket)
    if findings[-1].level == OK:
        findings.append(setup.place_of_socket(socket))
    found = {}
    for store in loaded.stores.values():
        of_store, place = setup.store(store, path, state_folder=state)
        if place is not None:
            found[store.name] = place
            findings.append(Finding(f"stores.{store.name}", OK, f"found {place}"))
        findings += of_store
    wrong = [finding for finding in findings if finding.level == WRONG]
    told = {
        "problems": [f"{finding.check}: {finding.what}" for finding in wrong],
        "found": found,
        "findings": [finding._asdict() for finding in findings],
    }
    if not args.json:
        for finding in findings:
            if finding.level != WRONG:
                print("\n".join(finding.lines))
        if not wrong:
            print(output.plain(f"{path} is fine"))
    elif not wrong:
        output.print_json({"path": path, **told})
    if not wrong:
        return 0
    *others, last = wrong
    if not args.json:
        sys.stdout.flush()
        for problem in others:
            print(output.plain(f"dpop-agent: {problem}"), file=sys.stderr)
    raise ConfigurationError(f"{last.check}: {last.what}", hint=last.mend, details=told)


def _check_change(new: config.Config, old: config.Config | None) -> None:
    """Refuse what a change brings: what it leaves as it is may be unplugged just now."""
    wrong = _wrong(new, but=old)
    if old is not None and wrong:
        known = _wrong(old, but=new)
        wrong = [finding for finding in wrong if finding not in known]
    if not wrong:
        return
    *others, last = wrong
    for problem in others:
        print(output.plain(f"dpop-agent: {problem}"), file=sys.stderr)
    raise ConfigurationError(
        f"{last.check}: {last.what}",
        hint=last.mend,
        details={"problems": [f"{finding.check}: {finding.what}" for finding in wrong]},
    )


def _wrong(found: config.Config, *, but: config.Config | None) -> list[Finding]:
    """What is wrong with what one configuration has otherwise than another."""
    from dpop_agent.cli.checks import setup
    from dpop_agent.cli.checks.finding import WRONG

    findings: list[Finding] = []
    if but is None or found.confirm_command != but.confirm_command:
        findings += setup.confirm_command(found.confirm_command, found.path)
    for name, store in found.stores.items():
        if but is None or store != but.stores.get(name):
            of_store, _ = setup.store(store, found.path, state_folder=paths.state_folder())
            findings += of_store
    return [finding for finding in findings if finding.level == WRONG]


def _path(args: Namespace) -> int:
    path = paths.config_file()
    if args.json:
        output.print_json({"path": path})
    else:
        print(path)
    return 0
