"""What is on this machine: PKCS#11 modules and their tokens, the keychain."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace

from dpop_agent import config
from dpop_agent.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

LOOK_TIMEOUT_S = 15.0
"""What needs longer to show its PKCS#11 tokens or keychain hangs, or waits for a daemon."""

_LINUX = ("/usr/lib", "/usr/lib/*-linux-gnu*", "/usr/lib64", "/usr/local/lib")
_MACOS = ("/opt/homebrew/lib", "/usr/local/lib")

# What a store is called, and where its module is in those folders (Debian's, Fedora's, Homebrew's
# places).
_MODULES = (
    ("soft", ("softhsm/libsofthsm2.so", "pkcs11/libsofthsm2.so")),
    (
        "yubikey",
        ("libykcs11.so", "libykcs11.so.2", "pkcs11/libykcs11.so", "libykcs11.dylib"),
    ),
    ("smartcard", ("opensc-pkcs11.so", "pkcs11/opensc-pkcs11.so")),
    (
        "tpm",
        ("libtpm2_pkcs11.so", "libtpm2_pkcs11.so.1", "pkcs11/libtpm2_pkcs11.so"),
    ),
)


_VARIABLES = ("SOFTHSM2_CONF", "KRYOPTIC_CONF", "TPM2_PKCS11_STORE", "P11_KIT_SERVER_ADDRESS")
"""What tells modules where their PKCS#11 tokens are."""

_READ_BY = {
    "softhsm": ("SOFTHSM2_CONF",),
    "kryoptic": ("KRYOPTIC_CONF",),
    "tpm2_pkcs11": ("TPM2_PKCS11_STORE",),
    "p11-kit-client": ("P11_KIT_SERVER_ADDRESS",),
    "ykcs11": (),
    "opensc": (),
}
"""What is in a module's name, and which of them it reads. Others, such as p11-kit's proxy, load
further modules, or may be any of these under another name.
"""


def variables_of(module: str) -> tuple[str, ...]:
    """The variables that may tell a module where its PKCS#11 tokens are."""
    file = os.path.basename(module)
    return next((names for part, names in _READ_BY.items() if part in file), _VARIABLES)


ALONE = "have the module show one of them alone: unplug the others, or see its settings"
"""What to do about PKCS#11 tokens that look the same."""

_MAKE_ONE = (
    "plug one in, or make one with its vendor's tool (for SoftHSM2 see docs/getting-started.md)"
)

_PIV = "piv_"
"""OpenSC's manufacturer of PIV cards, whose label changes with the first certificate."""


class Token:
    """A PKCS#11 token that a module shows.

    Attributes:
        uri: what names it and no other of its module's; None if nothing does.
        tries_left: how many wrong PINs it takes still, up to 2; None for more, or where it doesn't
            tell.
        mark: the `tries` since the last login that was accepted, and how the last `ended`; None
            where all is well.
        library: its module's maker and version.
        troubles: what is known that its module can't do or doesn't tell.
    """

    uri: config.TokenUri | None = None

    def __init__(self, module: str, module_args: str, shown: dict[str, Any]) -> None:
        self.module = module
        self.module_args = module_args
        self.label, self.serial, self.manufacturer, self.model = (
            str(shown.get(name) or "").rstrip(" \0")
            for name in ("label", "serial", "manufacturer", "model")
        )
        self.usable = shown.get("initialized") is True
        self.has_login = shown.get("has_login") is not False
        self.has_pin = shown.get("has_pin") is not False
        self.tries_left: int | None = shown.get("tries_left")
        self.mark: dict[str, Any] | None = shown.get("mark")
        self.library: str = shown.get("library", "")
        self.troubles: list[str] = shown.get("troubles", [])

    @property
    def texts(self) -> dict[str, str]:
        return {
            "label": self.label,
            "serial": self.serial,
            "manufacturer": self.manufacturer,
            "model": self.model,
        }

    @property
    def whole_uri(self) -> config.TokenUri:
        """All that can be said of it."""
        return config.uri_of(**self.texts)

    def name(self, others: Iterable[Token]) -> None:
        """Find the shortest URI that names none of the others."""
        whole = self.whole_uri
        if self.manufacturer.startswith(_PIV) and whole.serial is not None:
            whole = replace(whole, token=None)
        for uri in (replace(whole, manufacturer=None, model=None), whole):
            if uri != config.TokenUri() and not any(other.fits(uri) for other in others):
                self.uri = uri
                return

    def fits(self, wanted: config.TokenUri | str | None) -> bool:
        if wanted is None or isinstance(wanted, str):
            return wanted is None or wanted == self.label
        return wanted.matches(**self.texts)


class NothingHere(ConfigurationError):
    """No PKCS#11 token, and nothing that could have one failed."""


def look(module: str | None, module_args: str) -> list[tuple[str, Token]]:
    """The store's name and PKCS#11 token, for each initialised one here."""
    if module is not None:
        module = os.path.abspath(os.path.expanduser(module))
        if not os.path.isfile(module):
            raise ConfigurationError(
                f"there is no PKCS#11 module at {module}", hint="give the full path of one"
            )
        modules = [(_store_name(module), module)]
    else:
        modules = _known_modules()
        if not modules:
            raise NothingHere(
                "there is no PKCS#11 module where SoftHSM2, ykcs11, OpenSC and tpm2-pkcs11 put "
                "theirs",
                hint="install one (SoftHSM2 on Debian: apt install softhsm2), or give --module",
            )
    found: list[tuple[str, Token]] = []
    silent: dict[str, ConfigurationError] = {}
    for store, path in modules:
        try:
            found += [(store, token) for token in tokens(path, module_args)]
        except ConfigurationError as e:
            if module is not None or not _is_not_set_up(path):
                hint = f"{e.hint}{or_variable(path, os.environ)}"
                silent[path] = ConfigurationError(e.message, hint=hint)
    if found:
        return found
    if silent and len(silent) == len(modules):
        raise next(iter(silent.values()))
    empty = [os.path.basename(p) if module is None else p for _, p in modules if p not in silent]
    what = f"no initialised PKCS#11 token in {', '.join(empty)}"
    told = "".join(dict.fromkeys(or_variable(p, os.environ) for _, p in modules if p not in silent))
    if silent:
        raise ConfigurationError(
            f"{what}, and no answer from {', '.join(map(os.path.basename, silent))}",
            hint=f"{_MAKE_ONE}{told}; to see why one doesn't answer: dpop-agent init --module "
            f"{next(iter(silent))}; or use the operating system's keychain, whose keys are "
            "exportable: dpop-agent init --keychain",
        )
    raise NothingHere(
        what,
        hint=f"{_MAKE_ONE}{told}",
    )


def _is_not_set_up(module: str) -> bool:
    """Whether it is a software module that was never told where its PKCS#11 tokens are: Debian's
    own configuration of SoftHSM2 is for the group softhsm only.
    """
    return "softhsm" in os.path.basename(module) and not os.environ.get("SOFTHSM2_CONF")


def or_variable(module: str, env: Mapping[str, str]) -> str:
    """What is to be added to a hint: that a variable tells the module where to look."""
    names = variables_of(module)
    wrong = [f", or correct {name}, which is {env[name]}" for name in names if env.get(name)]
    return "".join(wrong) if wrong or len(names) != 1 else f", or set {names[0]}"


def _known_modules() -> list[tuple[str, str]]:
    from glob import glob

    found: list[tuple[str, str]] = []
    for store, files in _MODULES:
        seen: set[str] = set()
        for folder in _MACOS if sys.platform == "darwin" else _LINUX:
            for file in files:
                # One library under several names is one module.
                for path in sorted(glob(os.path.join(folder, file))):
                    if os.path.realpath(path) not in seen:
                        seen.add(os.path.realpath(path))
                        found.append((store, path))
    return found


def _store_name(module: str) -> str:
    file = os.path.basename(module)
    for store, files in _MODULES:
        if file in map(os.path.basename, files):
            return store
    stem = re.sub(r"[^a-z0-9._-]", "-", file.partition(".")[0].lower().removeprefix("lib"))
    return stem[:64] if config.STORE_NAME.fullmatch(stem[:64]) else "pkcs11"


def tokens(
    module: str,
    module_args: str,
    env: Mapping[str, str] | None = None,
    *,
    otherwise: str | None = None,
) -> list[Token]:
    """A module's, if they are initialised, asked in a process of its own: it may crash or hang.

    Nobody logs in. `otherwise` is for the hint: what else people can do where it fails.

    Raises:
        ConfigurationError: it shows nothing that can be read.
    """
    what = f"the PKCS#11 module {module}"
    words = ["dpop_agent.signer", "--tokens", module, module_args]
    if otherwise is None:
        otherwise = "give another --module"
        if module_args:
            otherwise = f"correct --module-args, or {otherwise}"
    shown = _json_from(words, what, otherwise, env)
    try:
        found = [Token(module, module_args, one) for one in shown]
    except (TypeError, AttributeError) as e:
        raise ConfigurationError(
            f"{what} lists its tokens in a form that can't be read", hint=otherwise
        ) from e
    found = [token for token in found if token.usable]
    for token in found:
        token.name([other for other in found if other is not token])
    return found


def keychain(backend: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the signer says of the keychain; it may hang, so it is asked in a process of its own."""
    what = "the operating system's keychain"
    shown = _json_from(["dpop_agent.signer.keychain", backend], what, "use a PKCS#11 token", env)
    if not isinstance(shown, dict):
        raise ConfigurationError(
            f"{what} gave an answer that can't be read", hint="use a PKCS#11 token"
        )
    return shown


def pin_file(path: str) -> str | None:
    """What a login would say of the PIN in a file, which a process of its own reads."""
    shown = _json_from(["dpop_agent.signer", "--pin-file", path], "the PIN file", "name another")
    problem = shown.get("problem") if isinstance(shown, dict) else "it can't be looked at"
    return None if problem is None else str(problem)


def _json_from(
    words: list[str], what: str, otherwise: str, env: Mapping[str, str] | None = None
) -> Any:
    """The JSON that the signer's module of that name prints.

    Raises:
        ConfigurationError: it doesn't, and what it says instead.
    """
    import json
    import subprocess

    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LOOK_TIMEOUT_S,
            check=False,
            env=os.environ | dict(env or {}),
        )
    except subprocess.TimeoutExpired as e:
        raise ConfigurationError(
            f"{what} didn't answer within {LOOK_TIMEOUT_S:.0f} s",
            hint=f"start the daemon that it talks to, or {otherwise}",
        ) from e
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ConfigurationError(
            said[-1][:400]
            if said
            else f"{what} ended the process that loaded it (status {done.returncode})",
            hint=f"or {otherwise}",
        )
    try:
        return json.loads(done.stdout)
    except ValueError as e:
        raise ConfigurationError(f"{what} gave an answer that can't be read", hint=otherwise) from e
