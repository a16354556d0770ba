"""The configuration: where keys live. What a key may be used for belongs to the key.

[agent]
default_store = "work"
max_connections = 512                  # on agent.sock; without it 512, or as many as fit
max_socket_connections = 128           # on each further socket
max_waiting = 8192                     # requests that wait for one store
lock_after = "15m"                     # lock stores that nobody has used for so long; else never
release_after = "30s"                  # leave an idle PKCS#11 token to other programs; else never
confirm_command = ["/usr/bin/kdialog", "--yesno"]  # asks for consent, instead of pinentry: gets the
                                       # question as one more argument, ends with 0 for a yes
audit = "on"                           # or "required": no proof leaves unrecorded; or "off"
audit_mib = 32                         # size of an audit file; each socket has two at the most

[stores.work]
type = "pkcs11"
module = "/usr/lib/softhsm/libsofthsm2.so"
uri = "pkcs11:token=work"              # RFC 7512
pin_source = "file:~/.config/dpop-agent/work.pin"
env = {}                               # environment of the signer process
module_args = ""                       # for C_Initialize, where the module wants some (NSS)
verify = "first"                       # or "always": which signatures are checked before they leave
signers = 1                            # processes that sign with one PKCS#11 token at once
login_retries = 0                      # more logins after one that failed, with growing pauses:
                                       # only for an HSM that never locks its PIN

[stores.keychain]
type = "keychain"                      # of the operating system: exportable by the user's programs
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from types import MappingProxyType
from typing import Any, NoReturn

from dpop_agent import forking, paths
from dpop_agent.errors import ConfigurationError
from dpop_agent.spelling import nearest

SOCKET_CONNECTIONS, MAX_WAITING = 128, 8192
"""What holds where the configuration doesn't say: connections on each further socket, more than the
programs in one sandbox have any use for; and requests that wait for one store, twice what clients
can have under way, and more than any token signs before their deadlines."""

LEAST_WAITING, MOST_WAITING = 64, 1_000_000
"""Of these requests: what one connection may send at once; and what takes hours."""

MAX_CONNECTIONS = 100_000
"""More than one process has any use for; what the machine has room for is found at the start."""

AUDIT = ("on", "required", "off")
"""Whether proofs, refusals and changes are recorded, and whether proofs wait for that."""

AUDIT_MIB, MAX_AUDIT_MIB = 32, 16 * 1024
"""Mebibytes of an audit file: some 100 000 lines where nothing is said; and the most."""

MAX_SIZE = 256 * 1024
"""Bytes of a configuration file: hundreds of stores; more is some other file."""

MAX_LOGIN_RETRIES = 1000

MAX_SIGNERS = 16
"""Processes for one PKCS#11 token: with 5 ms a signature as many as one agent can serve proofs.
Each holds a session there, of which HSM partitions have few, and 20 MiB here.
"""

STORE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_CREDENTIAL = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}")
_PIN_SOURCES = (
    'write it as "prompt" (dpop-agent unlock asks), "file:PATH" (mode 0600), "credential:NAME" '
    '(systemd\'s), "keychain", or "none" (a PKCS#11 token without login)'
)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENV_OF_THE_AGENT = ("LD_", "GLIBC_TUNABLES", "MALLOC_", "PYTHON", "LANG", "LC_", "OPENSSL_")
"""Names, or their beginnings, that are read when a program starts or a library is loaded."""

_VERIFY = ("first", "always")
_TOP = ("agent", "stores")
AGENT: dict[str, type] = {
    "default_store": str,
    "max_connections": int,
    "max_socket_connections": int,
    "max_waiting": int,
    "lock_after": str,
    "release_after": str,
    "confirm_command": list,
    "audit": str,
    "audit_mib": int,
}
"""The settings of `[agent]`, and what each is written as."""

SETTINGS_BY_TYPE: dict[str, dict[str, type]] = {
    "pkcs11": {
        "type": str,
        "module": str,
        "module_args": str,
        "uri": str,
        "pin_source": str,
        "login_retries": int,
        "verify": str,
        "signers": int,
        "env": dict,
    },
    "keychain": {"type": str, "backend": str, "env": dict},
}
"""The settings of a store of each type, likewise."""


# keyring's own names. Whatever else it has, or finds installed, isn't taken: what it would choose
# by itself may be a plain file.
_FREEDESKTOP = "keyring.backends.SecretService.Keyring"
_MACOS = "keyring.backends.macOS.Keyring"
BACKENDS = (_FREEDESKTOP, _MACOS, "keyring.backends.kwallet.DBusKeyring")
"""The keychains that a store of type `keychain` may use."""

_REFUSED_BACKENDS = {
    "keyrings.": "it isn't one of keyring's own, and those that come with keyrings.alt keep "
    "private keys in files",
    "keyring.backends.null.": "it stores nothing",
    "keyring.backends.fail.": "it is what keyring uses where there is no keychain",
    "keyring.backends.chainer.": "it reads from all the others, plain files included",
}

# RFC 7512 section 2.3: unreserved / pk11-res-avail / "&", or an escape.
_VALUE = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&]|%[0-9A-Fa-f]{2})*")
_ATTRIBUTE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VENDORS_OWN = "x-"
_PADDING = " \0"

# The bytes that CK_TOKEN_INFO (PKCS#11 section 3.2) has for each: a longer value matches nothing.
_TOKEN_ATTRIBUTES = {"token": 32, "serial": 16, "manufacturer": 32, "model": 16}
_REFUSED_ATTRIBUTES = {
    "pin-value": "put the PIN in a file of mode 0600 and name it in pin_source",
    "pin-source": "name the PIN's source in the setting pin_source",
    "object": "name only the PKCS#11 token; keys get their names from: dpop-agent key create",
    "id": "name only the PKCS#11 token; keys get their names from: dpop-agent key create",
    "type": "name only the PKCS#11 token; keys get their names from: dpop-agent key create",
    "slot-id": "name the PKCS#11 token by token or serial: slot numbers change",
    "slot-description": "name the PKCS#11 token by token or serial",
    "slot-manufacturer": "name the PKCS#11 token by token or serial",
    "library-description": "name the module in the setting module",
    "library-manufacturer": "name the module in the setting module",
    "library-version": "name the module in the setting module",
    "module-name": "name the module in the setting module",
    "module-path": "name the module in the setting module",
}


@dataclass(frozen=True, slots=True)
class TokenUri:
    """The attributes of an RFC 7512 URI that name a PKCS#11 token, percent-decoded.

    An empty one is that of a PKCS#11 token which has nothing there. `ignored` are vendors' own
    attributes, which name nothing here.
    """

    token: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    ignored: tuple[str, ...] = field(default=(), compare=False)

    def matches(self, *, label: str, serial: str, manufacturer: str, model: str) -> bool:
        """Whether a PKCS#11 token is meant; `label` is what the URI calls `token`.

        The arguments come as CK_TOKEN_INFO has them: blanks at the end are padding.
        """
        return all(
            wanted is None or wanted == found.rstrip(_PADDING)
            for wanted, found in (
                (self.token, label),
                (self.serial, serial),
                (self.manufacturer, manufacturer),
                (self.model, model),
            )
        )

    def __str__(self) -> str:
        from urllib.parse import quote

        given = ((name, getattr(self, name)) for name in _TOKEN_ATTRIBUTES)
        return "pkcs11:" + ";".join(
            f"{name}={quote(v, safe='')}" for name, v in given if v is not None
        )


def uri_of(*, label: str, serial: str, manufacturer: str, model: str) -> TokenUri:
    """Whatever of a PKCS#11 token's texts can name it; what isn't text, or blank, is left out.

    Some modules leave whatever was in memory behind a label, which is another thing each time.
    """

    def named(text: str) -> str | None:
        return text if text and is_plain(text) else None

    return TokenUri(named(label), named(serial), named(manufacturer), named(model))


def is_plain(text: str) -> bool:
    """Whether it has neither control characters nor bytes that weren't UTF-8."""
    return not any(c < " " or "\x7f" <= c < "\xa0" or c == "\ufffd" for c in text)


def telling_apart(uris: Collection[TokenUri]) -> tuple[str, ...]:
    """The fewest attributes by which PKCS#11 tokens differ, each from each; none if some don't."""
    names = ("serial", *(name for name in _TOKEN_ATTRIBUTES if name != "serial"))
    for many in range(1, len(names) + 1):
        for chosen in combinations(names, many):
            if len({tuple(getattr(uri, name) for name in chosen) for uri in uris}) == len(uris):
                return chosen
    return ()


@dataclass(frozen=True, slots=True)
class PinSource:
    """Where the signer has a store's PIN from.

    `kind` is `file` (its `argument` a path), `credential` (a systemd credential's name), `prompt`,
    `keychain` or, for a PKCS#11 token without login, `none`, which have no argument.
    """

    kind: str
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.argument}" if self.argument else self.kind


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """One `[stores.NAME]`; paths are absolute.

    `module`, `module_args`, `uri`, `pin_source`, `login_retries`, `verify` and `signers` are a
    PKCS#11 token's, `backend` (one of `BACKENDS`) is a keychain's. `verify` says which signatures
    the signer checks before they leave it: the `first` by each key after each start, or `always`
    each. `signers` is how many processes sign with it at once.
    """

    name: str
    type: str
    env: Mapping[str, str]
    module: str | None = None
    module_args: str = ""
    uri: TokenUri | None = None
    pin_source: PinSource | None = None
    login_retries: int = 0
    backend: str | None = None
    verify: str | None = None
    signers: int = 1


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration that was read and found to make sense.

    `max_connections` on `agent.sock` is None where it doesn't say, `max_socket_connections` is for
    each further socket, `max_waiting` the requests that wait for one store. `lock_after_s` and
    `release_after_s` are the seconds without use after which a store is locked, or a PKCS#11 token
    left to other programs; None for never. `confirm_command` asks for consent; where it is
    empty, pinentry does. `audit` is one of `AUDIT`, `audit_mib` the mebibytes of each of its files.
    """

    path: str
    default_store: str
    stores: Mapping[str, StoreConfig]
    max_connections: int | None = None
    max_socket_connections: int = SOCKET_CONNECTIONS
    max_waiting: int = MAX_WAITING
    lock_after_s: int | None = None
    release_after_s: int | None = None
    confirm_command: tuple[str, ...] = ()
    audit: str = "on"
    audit_mib: int = AUDIT_MIB


IDLE = ("lock_after_s", "release_after_s")
"""Of a configuration what the options of `serve` say otherwise."""


def check_confirm_program(path: str) -> None:
    """Refuse a program of `confirm_command` that others can change.

    Raises:
        ConfigurationError: what is wrong with it.
        OSError: there is none.
    """
    paths.check_only_ours(
        path,
        "the program that asks for consent",
        instead="name another in agent.confirm_command",
    )


def load(path: str | None = None) -> Config:
    """The configuration in `path`, else where `paths.config_file` says.

    Raises:
        ConfigurationError: no file there, one that others can change, or one that can't be right:
            names file and setting, never the value of a URI or a PIN's source.
    """
    path = path or paths.config_file()
    return parse(read(path), path)


def read(path: str) -> str:
    """The text of the configuration in `path`, whatever it says.

    Raises:
        ConfigurationError: no file there, one that others can change, or one that is no text.
    """
    try:
        descriptor = paths.open_only_ours(
            path, "the configuration", instead=paths.ANOTHER_CONFIG_FILE
        )
        with open(descriptor, "rb") as file:
            data = file.read(MAX_SIZE + 1)
    except FileNotFoundError as e:
        raise ConfigurationError(
            f"there is no configuration at {path}", hint="write one with: dpop-agent init"
        ) from e
    except (OSError, ValueError) as e:
        from shlex import quote

        reason = e.strerror if isinstance(e, OSError) else "the path has a zero byte"
        mend = "correct that"
        if isinstance(e, PermissionError):
            folder = os.path.dirname(os.path.abspath(path))
            mend = f"chmod u+rwX {quote(path if os.access(folder, os.X_OK) else folder)}"
        raise ConfigurationError(
            f"the configuration {path} can't be read: {reason}",
            hint=f"{mend}; or {paths.ANOTHER_CONFIG_FILE}",
        ) from e
    if len(data) > MAX_SIZE:
        raise ConfigurationError(
            f"the configuration {path} has more than {MAX_SIZE} bytes", hint="shorten it"
        )
    try:
        return data.decode("utf-8-sig")  # some editors begin a file with U+FEFF
    except UnicodeDecodeError as e:
        raise ConfigurationError(
            f"the configuration {path} isn't UTF-8 (byte {e.start})", hint="save it as UTF-8"
        ) from e


def parse(text: str, path: str) -> Config:
    """The configuration that `text` is, which is or will be in `path`.

    Raises:
        ConfigurationError: as `load` does.
    """
    import tomllib

    try:
        table = tomllib.loads(text)
    except RecursionError as e:
        raise ConfigurationError(f"{path} is nested too deeply", hint="correct it") from e
    except ValueError as e:  # TOMLDecodeError, and int's limit of digits
        raise ConfigurationError(f"{path} isn't TOML: {e}", hint="correct that line") from e
    return _Reader(path).config(table)


def parse_token_uri(uri: str) -> TokenUri:
    """The PKCS#11 token that `uri` names (RFC 7512 section 2.3).

    Raises:
        ConfigurationError: anything but token, serial, manufacturer, model and vendors' own
            attributes (section 2.3: `x-`), each once at most and one of the four at least. The
            message never has a value of the URI, since that may be a PIN.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme.lower() != "pkcs11":
        raise ConfigurationError(
            "the URI doesn't begin with pkcs11:", hint="write it as in pkcs11:token=work"
        )
    path, _, query = rest.partition("?")
    found: dict[str, str] = {}
    ignored: list[str] = []
    attributes = path.removesuffix(";").split(";")
    for attribute in attributes + (query.removesuffix("&").split("&") if query else []):
        name, equals, value = attribute.partition("=")
        if not equals or not _ATTRIBUTE.fullmatch(name):
            raise ConfigurationError(
                "the pkcs11: URI has a part that isn't name=value",
                hint="write it as in pkcs11:token=work;serial=0123",
            )
        if name.lower().startswith(_VENDORS_OWN):
            ignored.append(name)
            continue
        if name in _REFUSED_ATTRIBUTES:
            raise ConfigurationError(
                f"the pkcs11: URI has {name}, which isn't allowed there",
                hint=_REFUSED_ATTRIBUTES[name],
            )
        if name not in _TOKEN_ATTRIBUTES:
            raise ConfigurationError(
                f"the pkcs11: URI has the unknown attribute {name}",
                hint=nearest(name, _TOKEN_ATTRIBUTES),
            )
        if name in found:
            raise ConfigurationError(f"the pkcs11: URI has {name} twice", hint="leave one out")
        found[name] = _decoded(name, value)
    if not found:
        raise ConfigurationError(
            "the pkcs11: URI names no PKCS#11 token", hint="write it as in pkcs11:token=work"
        )
    return TokenUri(**found, ignored=tuple(ignored))


def default_backend() -> str:
    """The keychain that a store of type `keychain` uses where its configuration names none."""
    return _MACOS if sys.platform == "darwin" else _FREEDESKTOP


def _decoded(name: str, value: str) -> str:
    from urllib.parse import unquote_to_bytes

    if not _VALUE.fullmatch(value):
        raise ConfigurationError(
            f"the pkcs11: URI's {name} has a character that RFC 7512 doesn't allow there",
            hint="percent-encode it: a space is %20",
        )
    raw = unquote_to_bytes(value)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigurationError(
            f"the pkcs11: URI's {name} isn't UTF-8", hint="percent-encode its UTF-8 bytes"
        ) from e
    text = text.rstrip(_PADDING)
    size, most = len(text.encode("utf-8")), _TOKEN_ATTRIBUTES[name]
    if size > most or "\0" in text:
        raise ConfigurationError(
            f"the pkcs11: URI's {name} has {size} bytes, {most} at most are possible"
            if "\0" not in text
            else f"the pkcs11: URI's {name} has a zero byte",
            hint="see what the PKCS#11 token calls itself: dpop-agent init --dry-run",
        )
    return text


class _Reader:
    """Checks tables, and says where in which file something is wrong."""

    def __init__(self, path: str) -> None:
        self._path = path

    def config(self, table: dict[str, Any]) -> Config:
        self._known("", table, _TOP)
        agent = self._table("agent", table.get("agent", {}))
        self._known("agent", agent, AGENT)
        stores: dict[str, StoreConfig] = {}
        for name, settings in self._table("stores", table.get("stores", {})).items():
            if not STORE_NAME.fullmatch(name):
                self._refuse(
                    f"{name[:80]!r} can't be a store's name",
                    "use a-z, 0-9, dot, dash and underscore, 64 characters at most",
                )
            stores[name] = self._store(name, self._table(f"stores.{name}", settings))
        if not stores:
            self._refuse("there is no [stores.NAME]", "see what is here: dpop-agent init --dry-run")
        return Config(
            path=self._path,
            default_store=self._default(agent, stores),
            stores=MappingProxyType(stores),
            max_connections=self._connections(agent),
            max_socket_connections=self._number(
                "agent.max_socket_connections",
                agent.get("max_socket_connections", SOCKET_CONNECTIONS),
                *(1, MAX_CONNECTIONS),
            ),
            max_waiting=self._number(
                "agent.max_waiting",
                agent.get("max_waiting", MAX_WAITING),
                *(LEAST_WAITING, MOST_WAITING),
            ),
            lock_after_s=self._interval("lock_after", agent),
            release_after_s=self._interval("release_after", agent),
            confirm_command=self._command("agent.confirm_command", agent),
            audit=self._one_of("agent.audit", agent.get("audit", "on"), AUDIT),
            audit_mib=self._number(
                "agent.audit_mib", agent.get("audit_mib", AUDIT_MIB), 1, MAX_AUDIT_MIB
            ),
        )

    def _command(self, where: str, agent: dict[str, Any]) -> tuple[str, ...]:
        words = agent.get("confirm_command", [])
        hint = 'write it as in ["/usr/bin/kdialog", "--yesno"], or leave it out for pinentry'
        if not isinstance(words, list):
            self._refuse(f"{where} has to be a list, not {_kind(words)}", hint)
        if not words:
            if "confirm_command" in agent:
                self._refuse(f"{where} is empty", hint)
            return ()
        program, *arguments = (self._c_text(where, word) for word in words)
        return self._file(f"{where}[0]", program, hint), *arguments

    def _interval(self, name: str, agent: dict[str, Any]) -> int | None:
        if name not in agent:
            return None
        from dpop_agent import durations  # no signer needs it

        try:
            return durations.interval(self._text(f"agent.{name}", agent[name]))
        except ValueError as e:
            self._refuse(f"agent.{name}: {e}", "correct it, or leave it out for never")

    def _connections(self, agent: dict[str, Any]) -> int | None:
        if "max_connections" not in agent:
            return None
        return self._number("agent.max_connections", agent["max_connections"], 1, MAX_CONNECTIONS)

    def _default(self, agent: dict[str, Any], stores: Mapping[str, StoreConfig]) -> str:
        if "default_store" not in agent:
            if len(stores) == 1:
                return next(iter(stores))
            self._refuse(
                "agent.default_store is missing, and there are several stores",
                f"name one of: {', '.join(stores)}",
            )
        name = self._text("agent.default_store", agent["default_store"])
        if name not in stores:
            self._refuse(
                f"agent.default_store names the store {name[:80]!r}, which isn't configured",
                nearest(name, stores),
            )
        return name

    def _store(self, name: str, table: dict[str, Any]) -> StoreConfig:
        where = f"stores.{name}"
        kind = self._text(f"{where}.type", self._must(where, table, "type"))
        if kind not in SETTINGS_BY_TYPE:
            self._refuse(
                f"{where}.type names a kind of store that this version doesn't have",
                f"there are: {', '.join(SETTINGS_BY_TYPE)}",
            )
        if kind == "keychain" and "signers" in table:
            self._refuse(
                f"{where}.signers is for a PKCS#11 token that makes several signatures at once, "
                "which a keychain doesn't",
                "leave it out",
            )
        self._known(where, table, SETTINGS_BY_TYPE[kind])
        if kind == "keychain":
            return StoreConfig(
                name=name,
                type=kind,
                env=self._env(f"{where}.env", table.get("env", {})),
                backend=self._backend(f"{where}.backend", table.get("backend", default_backend())),
            )
        module = self._file(
            f"{where}.module",
            self._text(f"{where}.module", self._must(where, table, "module")),
            "give the PKCS#11 module's full path, as in /usr/lib/softhsm/libsofthsm2.so",
        )
        text = self._text(f"{where}.uri", self._must(where, table, "uri"))
        try:
            uri = parse_token_uri(text)
        except ConfigurationError as e:
            self._refuse(f"{where}.uri: {e.message}", e.hint)
        for attribute in uri.ignored:
            self._tell(f"{where}.uri has the attribute {attribute}, which isn't known: ignored")
        return StoreConfig(
            name=name,
            type=kind,
            env=self._env(f"{where}.env", table.get("env", {})),
            module=module,
            module_args=self._c_text(f"{where}.module_args", table.get("module_args", "")),
            uri=uri,
            pin_source=self._pin_source(
                f"{where}.pin_source", self._must(where, table, "pin_source")
            ),
            login_retries=self._number(
                f"{where}.login_retries", table.get("login_retries", 0), 0, MAX_LOGIN_RETRIES
            ),
            verify=self._one_of(f"{where}.verify", table.get("verify", "first"), _VERIFY),
            signers=self._signers(f"{where}.signers", table.get("signers", 1)),
        )

    def _signers(self, where: str, value: object) -> int:
        signers = self._number(where, value, 1, MAX_SIGNERS)
        if signers > 1 and not forking.is_possible():
            self._refuse(
                f"{where} is {signers}, which only Linux has: here no signer can hand another a "
                "PIN past the agent",
                "leave it out",
            )
        return signers

    def _one_of(self, where: str, value: object, known: tuple[str, ...]) -> str:
        """A word of which the first is what holds where nothing is said."""
        text = self._text(where, value)
        if text not in known:
            wanted = " or ".join(map(repr, known))
            self._refuse(
                f"{where} has to be {wanted}", f"correct it, or leave it out for {known[0]!r}"
            )
        return text

    def _backend(self, where: str, value: object) -> str:
        name = self._text(where, value)
        if name not in BACKENDS:
            why = [reason for start, reason in _REFUSED_BACKENDS.items() if name.startswith(start)]
            self._refuse(
                f"{where} names {name[:80]!r}, which isn't accepted"
                + (f": {why[0]}" if why else ": it isn't a keychain known here"),
                f"leave it out, or name one of: {', '.join(BACKENDS)}",
            )
        return name

    def _pin_source(self, where: str, value: object) -> PinSource:
        # What stands here may be a PIN: neither its type nor its text is told.
        if not isinstance(value, str):
            self._refuse(f"{where} isn't a source of PINs", _PIN_SOURCES)
        kind, _, argument = value.partition(":")
        if kind == "file" and argument:
            return PinSource(kind, self._file(where, argument, _PIN_SOURCES))
        if kind == "credential" and _CREDENTIAL.fullmatch(argument):
            return PinSource(kind, argument)
        if value not in ("prompt", "keychain", "none"):
            self._refuse(f"{where} isn't a source of PINs", _PIN_SOURCES)
        return PinSource(value)

    def _env(self, where: str, value: object) -> Mapping[str, str]:
        env = self._table(where, value)
        for name, text in env.items():
            if not _ENV_NAME.fullmatch(name):
                self._refuse(
                    f"{where} has {name[:80]!r}, which isn't the name of a variable",
                    "use letters, digits and underscore",
                )
            if name.startswith(_ENV_OF_THE_AGENT):
                self._refuse(
                    f"{where} has {name}, which works only when a program starts, and signers are "
                    "forked from one that runs",
                    "set it in the agent's own environment",
                )
            self._c_text(f"{where}.{name}", text)
        return MappingProxyType(env)

    def _file(self, where: str, value: str, hint: str) -> str:
        """An absolute path: the agent's working directory is whatever it was started in."""
        path = os.path.expanduser(value)
        if not os.path.isabs(path) or "\0" in path:
            self._refuse(f"{where} isn't a full path", hint)
        return path

    def _must(self, where: str, table: dict[str, Any], name: str) -> object:
        if name not in table:
            settings = SETTINGS_BY_TYPE.get(table.get("type", ""), SETTINGS_BY_TYPE["pkcs11"])
            near = [n for n in table if n not in settings]
            self._refuse(
                f"{where}.{name} is missing",
                f"add it; {near[0][:80]!r} isn't a setting" if near else f"add {name} = …",
            )
        return table[name]

    def _known(self, where: str, table: dict[str, Any], known: Collection[str]) -> None:
        for name in table:
            if name not in known:
                place = f"{where} has" if where else "it has"
                self._refuse(f"{place} the unknown setting {name[:80]!r}", nearest(name, known))

    def _text(self, where: str, value: object) -> str:
        if not isinstance(value, str):
            self._refuse(f"{where} has to be text, not {_kind(value)}", 'write it in "…"')
        return value

    def _number(self, where: str, value: object, least: int, most: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            self._refuse(
                f"{where} has to be a number, not {_kind(value)}",
                f"use a number from {least} to {most}, without quotes",
            )
        if not least <= value <= most:
            self._refuse(f"{where} is {value}", f"use a number from {least} to {most}")
        return value

    def _c_text(self, where: str, value: object) -> str:
        """Text that C takes."""
        if "\0" in (text := self._text(where, value)):
            self._refuse(f"{where} has a zero byte", "leave it out")
        return text

    def _table(self, where: str, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._refuse(
                f"{where} has to be a table, not {_kind(value)}",
                f"write it as [{where}] with its settings below",
            )
        return value

    def _tell(self, what: str) -> None:
        import logging  # what few configurations need costs every command its start-up

        logging.getLogger("dpop_agent.config").warning("%s: %s", self._path, what)

    def _refuse(self, what: str, hint: str) -> NoReturn:
        raise ConfigurationError(f"{self._path}: {what}", hint=hint)


def _kind(value: object) -> str:
    kinds: tuple[tuple[type, str], ...] = (
        (bool, "true or false"),
        (int, "a number"),
        (float, "a number"),
        (str, "text"),
        (list, "a list"),
        (dict, "a table"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "a date or time")
