"""Checks of what is configured: files and folders, modules, PKCS#11 tokens, sources of PINs."""

from __future__ import annotations

import os
import stat
from shlex import quote

from dpop_agent import config, paths
from dpop_agent.cli import discovery
from dpop_agent.cli.checks.finding import OK, WARNING, WRONG, Finding, of_error, problems
from dpop_agent.errors import ConfigurationError, DPoPAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from dpop_agent.client.sync import AgentClient

OPEN_STATES = ("ready", "starting")
"""Of a store: its PIN was accepted, or is looked at now."""


def edit(path: str) -> str:
    """What to type to correct the configuration."""
    where = "" if path == paths.config_file() else f"DPOP_AGENT_CONFIG={quote(path)} "
    return f"to edit it: {where}dpop-agent config edit"


def configuration(path: str) -> tuple[config.Config | None, list[Finding]]:
    """The configuration, and what is wrong with it or with what it names beside the stores."""
    check = "configuration"
    try:
        text = config.read(path)
    except ConfigurationError as e:
        return None, [of_error(check, e)]
    try:
        found = config.parse(text, path)
    except ConfigurationError as e:
        return None, [of_error(check, e, edit(path))]
    return found, [Finding(check, OK, path), *confirm_command(found.confirm_command, path)]


def confirm_command(command: Sequence[str], path: str) -> list[Finding]:
    if not command:
        return []
    check, program = "agent.confirm_command", command[0]
    if not os.access(program, os.X_OK) or os.path.isdir(program):
        mend = f"install it, correct the path, or leave it out for pinentry; {edit(path)}"
        return [Finding(check, WRONG, f"there is no program at {program}", mend)]
    return problems(check, lambda: config.check_confirm_program(program))


def state_folder(folder: str) -> list[Finding]:
    """Whether it, and the way to it, are ours alone, and can be written."""
    check = "state folder"

    def look() -> None:
        paths.check_only_ours(folder, "the state folder", instead=paths.ANOTHER_STATE_FOLDER)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"the state folder {folder} can't be written",
                hint=f"chmod u+rwx {quote(folder)}; or {paths.ANOTHER_STATE_FOLDER}",
            )

    there = "" if os.path.isdir(folder) else ", made by the first start"
    return problems(check, look) or [Finding(check, OK, f"{folder}{there}")]


def socket_folder(path: str) -> list[Finding]:
    """Whether the socket's folder, and the way to it, are ours alone, as the agent asks."""
    check = "socket folder"

    def look() -> None:
        paths.check_socket_path(path)
        paths.check_socket_folder(path)

    return problems(check, look) or [Finding(check, OK, os.path.dirname(path))]


def place_of_socket(path: str) -> Finding:
    """Whether an agent can listen there, or which one does."""
    from dpop_agent.client.connection import connect
    from dpop_agent.client.sync import AgentClient
    from dpop_agent.errors import AgentUnavailable

    check = "socket"
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return no_socket(check, path)
        sock = connect(path)
        if sock is not None:
            sock.close()
    except AgentUnavailable:
        return Finding(check, OK, f"{path} is free: an agent left it, and the next takes its place")
    except OSError:
        return Finding(check, OK, f"{path} is free")
    except DPoPAgentError as e:
        return of_error(check, e)
    try:
        with AgentClient(path) as agent:
            status = status_of(agent)
    except DPoPAgentError as e:
        what = f"some program listens at {path} and isn't an agent that answers: {e.message}"
        return Finding(check, WRONG, what, f"end it, or {paths.ANOTHER_SOCKET}")
    reads = f", which reads {status['config']}" if "config" in status else ""
    return Finding(check, OK, f"{path} is served by process {status['pid']}{reads}")


def status_of(client: AgentClient) -> dict[str, Any]:
    """What an agent says of itself, of any version.

    Raises:
        DPoPAgentError: it doesn't, or it is none.
    """
    status = client.status()
    stores = status.get("stores")
    is_one = isinstance(stores, list) and all(isinstance(store, dict) for store in stores)
    if not (is_one and {"agent", "pid"} <= status.keys()):
        raise DPoPAgentError(
            f"what answers at {client.path} isn't an agent",
            hint=f"end it, or {paths.ANOTHER_SOCKET}",
        )
    return status


def no_socket(check: str, path: str) -> Finding:
    """Something else is where the socket is to be."""
    mend = f"mv {quote(path)} {quote(path + '.away')}"
    return Finding(check, WRONG, f"{path} is there and isn't a socket", f"move it away: {mend}")


def store(
    found: config.StoreConfig, path: str, *, state_folder: str, state: str | None = None
) -> tuple[list[Finding], str | None]:
    """What is wrong with a store, and what was found where it is to be.

    Args:
        found: the store.
        path: the configuration's.
        state_folder: the agent's.
        state: the store's, as a running agent says.
    """
    check = f"stores.{found.name}"
    if found.backend is not None:
        return _keychain(check, found.backend, found.env)
    place = None
    findings = _module(check, found, path)
    if not findings:
        findings, place = _token(check, found, path, state_folder, state)
    return findings + _pin_source(check, found), place


def _module(check: str, found: config.StoreConfig, path: str) -> list[Finding]:
    module = found.module
    assert module is not None  # PKCS#11 has one
    if not os.path.isfile(module):
        mend = f"install it, or correct the path; {edit(path)}"
        return [Finding(check, WRONG, f"there is no PKCS#11 module at {module}", mend)]
    if not os.access(module, os.R_OK):
        mend = f"chmod a+r {quote(module)}"
        return [Finding(check, WRONG, f"the PKCS#11 module {module} can't be read", mend)]

    def look() -> None:
        paths.check_only_ours(module, "the PKCS#11 module", instead="name another in module")

    return problems(check, look)


def _token(
    check: str, found: config.StoreConfig, path: str, state_folder: str, state: str | None
) -> tuple[list[Finding], str | None]:
    """Whether the one PKCS#11 token is there that its URI names, and takes a PIN."""
    module, uri, source = found.module, found.uri, found.pin_source
    assert module is not None  # PKCS#11 has them all
    assert uri is not None
    assert source is not None
    looked_for = {**found.env, "DPOP_AGENT_STATE_DIR": state_folder}
    try:
        shown = discovery.tokens(
            module, found.module_args, looked_for, otherwise="correct module, module_args or env"
        )
    except ConfigurationError as e:
        return [of_error(check, e, edit(path))], None
    fitting = [token for token in shown if token.fits(uri)]
    if len(fitting) > 1:
        return [_several(check, uri, [token.whole_uri for token in fitting], path)], None
    if not fitting:
        mend = f"plug it in, or correct uri{discovery.or_variable(module, found.env)}; {edit(path)}"
        return [Finding(check, WRONG, f"not found: PKCS#11 token {uri}", mend)], None
    (token,) = fitting
    serial = f", serial {token.serial}" if token.serial else ""
    by = f", by {token.library}" if token.library else ""
    place = f"PKCS#11 token {token.label!r}{serial}{by}"
    if token.has_login and source.kind == "none":
        what = 'it wants a login, and its pin_source is "none"'
        mend = f'set pin_source to "prompt" or another source of its PIN; {edit(path)}'
        return [Finding(check, WRONG, what, mend)], place
    if not token.has_login and source.kind != "none":
        what = "it has no login: it wants no PIN"
        mend = f'set pin_source = "none", or give it a PIN by its vendor\'s tool; {edit(path)}'
        return [Finding(check, WRONG, what, mend)], place
    known = [Finding(check, OK, f"known of its module: {what}") for what in token.troubles]
    return known + _pin_state(check, found, token, state), place


def _several(
    check: str, uri: config.TokenUri, fitting: list[config.TokenUri], path: str
) -> Finding:
    what = f"{len(fitting)} PKCS#11 tokens fit {uri}"
    apart = config.telling_apart(fitting)
    if not apart:
        return Finding(check, WRONG, what, discovery.ALONE)
    named = [config.TokenUri(**{name: getattr(one, name) for name in apart}) for one in fitting]
    what += f": {', '.join(map(str, named))}"
    return Finding(check, WRONG, what, f"give {' and '.join(apart)} in uri; {edit(path)}")


def _pin_state(
    check: str, found: config.StoreConfig, token: discovery.Token, state: str | None
) -> list[Finding]:
    """What the PKCS#11 token, and the marks in the state folder, say of its PIN."""
    unlock = f"dpop-agent unlock {found.name}"
    source = found.pin_source
    assert source is not None
    if token.tries_left == 0:
        mend = (
            "unblock it by its vendor's tool (a card by its PUK, a TPM by tpm2_dictionarylockout), "
            f"then: {unlock}"
        )
        return [Finding(check, WRONG, "its PIN is locked: too many wrong ones came", mend)]
    if state not in OPEN_STATES and token.mark and token.mark["tries"] > found.login_retries:
        what = f"a login to it {token.mark['ended']}: none is tried again by itself"
        mend = unlock
        if source.kind == "file":
            mend = f"correct the PIN in {source.argument}, then: {unlock}"
        return [Finding(check, WRONG, what, mend)]
    if token.tries_left is not None:
        what = "one PIN try is left" if token.tries_left == 1 else "two PIN tries are left"
        mend = f"with the right PIN: {unlock}"
        if token.tries_left == 1 and source.kind != "prompt":
            mend = f"log in once with its vendor's tool, then: {unlock}"
        return [Finding(check, WARNING, what, mend)]
    if token.has_login and not token.has_pin and state not in OPEN_STATES:
        what = "it says that it has no user PIN"
        mend = "unless it has, set one with the tool that came with its module"
        return [Finding(check, WARNING, what, mend)]
    return []


def _pin_source(check: str, found: config.StoreConfig) -> list[Finding]:
    source = found.pin_source
    assert source is not None
    if source.kind == "file":
        return pin_file(check, source.argument) or _pin_in_file(check, source.argument)
    if source.kind == "keychain":
        return _keychain(check, config.default_backend(), found.env)[0]
    if source.kind == "credential":
        return _credential(check, source.argument)
    return []


def pin_file(check: str, path: str) -> list[Finding]:
    """What is wrong with a file that is to have a PIN."""
    try:
        info = os.stat(path)
    except OSError as e:
        what = f"the PIN file {path} can't be read: {e.strerror}"
        return [Finding(check, WRONG, what, _write_pin(path))]
    if not stat.S_ISREG(info.st_mode):
        return [Finding(check, WRONG, f"the PIN file {path} isn't a file", "name another")]

    def look() -> None:
        paths.check_only_ours(path, "the PIN file", instead="name another in pin_source")

    found = problems(check, look)
    if info.st_mode & 0o077 and not found:
        mode = f"{stat.S_IMODE(info.st_mode):04o}"
        what = f"the PIN file {path} has mode {mode}: others can read it"
        found.append(Finding(check, WRONG, what, f"chmod 600 {quote(path)}"))
    elif not os.access(path, os.R_OK):
        what = f"the PIN file {path} can't be read"
        found.append(Finding(check, WRONG, what, f"chmod 600 {quote(path)}"))
    if info.st_size == 0:
        found.append(Finding(check, WRONG, f"the PIN file {path} is empty", _write_pin(path)))
    return found


def _pin_in_file(check: str, path: str) -> list[Finding]:
    """What a login would say of what is in the file, which a process of its own reads."""
    try:
        problem = discovery.pin_file(path)
    except ConfigurationError as e:
        return [of_error(check, e)]
    if problem is None:
        return []
    return [Finding(check, WRONG, problem, _write_pin(path))]


def _write_pin(path: str) -> str:
    """What to type to have the PIN in that file."""
    return f"write the PIN into it: (umask 077; cat > {quote(path)})"


def _credential(check: str, name: str) -> list[Finding]:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        what = f"its PIN is systemd's credential {name}, which only the agent's unit can see"
        return [Finding(check, OK, what)]
    if not os.access(os.path.join(folder, name), os.R_OK):
        what = f"there is no systemd credential {name} that can be read"
        return [Finding(check, WRONG, what, "add LoadCredential= to the agent's unit")]
    return []


def _keychain(check: str, backend: str, env: Mapping[str, str]) -> tuple[list[Finding], str | None]:
    try:
        shown = discovery.keychain(backend, env)
    except ConfigurationError as e:
        return [of_error(check, e)], None
    label = f" {shown['label']!r}" if shown.get("label") else ""
    return [], f"keychain{label}{', locked' if shown.get('locked') else ''}"
