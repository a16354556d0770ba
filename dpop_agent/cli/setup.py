"""`init` and `config show | check | path`."""

from __future__ import annotations

import os
import re
import stat
import sys

from dpop_agent import config, paths
from dpop_agent.cli import arguments, output
from dpop_agent.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping
    from typing import Any

LOOK_TIMEOUT_S = 15.0
"""What needs longer to show its PKCS#11 tokens or keychain hangs, or waits for a daemon."""

_KEYCHAIN = "keychain"
_EXPORTABLE = "keys in the keychain are exportable: any program of yours can read them there"

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

_FOUND_BY = (("softhsm", "SOFTHSM2_CONF"), ("tpm2_pkcs11", "TPM2_PKCS11_STORE"))
"""What is in a module's name, and the variable that tells it where its tokens are."""


def parser(verb: str) -> arguments.Parser:
    """The parser of one of the two verbs."""
    return _init_parser() if verb == "init" else _config_parser()


def _init_parser() -> arguments.Parser:
    found = arguments.verb("init", "Look what is here and write a configuration that works.")
    where = found.add_mutually_exclusive_group()
    where.add_argument("--module", metavar="PATH", help="a PKCS#11 module; else looks for some")
    where.add_argument(
        "--keychain",
        action="store_true",
        help="the operating system's keychain, whose keys are exportable; without this it is taken "
        "where no PKCS#11 token is found",
    )
    found.add_argument(
        "--module-args",
        metavar="TEXT",
        default="",
        help="what C_Initialize gets, for a module that wants it: NSS",
    )
    found.add_argument(
        "--token",
        metavar="LABEL",
        help="the PKCS#11 token's label or RFC 7512 URI, where there are several",
    )
    found.add_argument(
        "--pin-file",
        metavar="PATH",
        help="the file of mode 0600 with its PIN; else dpop-agent unlock asks for it",
    )
    found.add_argument("--dry-run", action="store_true", help="print it, write nothing")
    arguments.add_json(found)
    found.set_defaults(run=_init)
    return found


def _config_parser() -> arguments.Parser:
    found = arguments.verb("config", "Show, check or find the configuration.")
    verbs = found.add_subparsers(metavar="VERB", required=True)
    actions: tuple[tuple[str, str, Callable[[Namespace], int]], ...] = (
        ("show", "What the configuration says", _show),
        ("check", "Whether it can work here: files, their owners and modes", _check),
        ("path", "Where it is", _path),
    )
    for name, what, run in actions:
        sub = verbs.add_parser(name, help=what, description=f"{what}.")
        arguments.add_json(sub)
        sub.set_defaults(run=run)
    return found


class _Token:
    """A PKCS#11 token that a module shows."""

    def __init__(self, module: str, module_args: str, shown: dict[str, Any]) -> None:
        self.module = module
        self.module_args = module_args
        self.label, self.serial, self.manufacturer, self.model = (
            str(shown.get(name) or "").rstrip(" \0")
            for name in ("label", "serial", "manufacturer", "model")
        )
        self.usable = shown.get("initialized") is True
        self.has_pin = shown.get("has_pin") is not False

    @property
    def uri(self) -> config.TokenUri:
        """Label and serial: no other PKCS#11 token has both."""
        if self.label or self.serial:
            return config.TokenUri(token=self.label or None, serial=self.serial or None)
        return config.TokenUri(manufacturer=self.manufacturer or None, model=self.model or None)

    def fits(self, wanted: config.TokenUri | str | None) -> bool:
        if wanted is None or isinstance(wanted, str):
            return wanted is None or wanted == self.label
        return wanted.matches(
            label=self.label, serial=self.serial, manufacturer=self.manufacturer, model=self.model
        )


class _NothingHere(ConfigurationError):
    """No PKCS#11 token, and nothing that could have one failed."""


def _init(args: Namespace) -> int:
    path = os.path.abspath(paths.config_file())
    if os.path.lexists(path) and not args.dry_run:
        raise _exists(path)
    text, said, exportable = _found(args)
    if not args.dry_run:
        _write(path, text)
        config.load(path)
    if args.json:
        told = {"config": path, "written": not args.dry_run, "text": text}
        output.print_json(told | ({"exportable": True} if exportable else {}))
    elif args.dry_run:
        print(f"# would be written to {path}\n{text}", end="")
    else:
        asks = 'pin_source = "prompt"' in text
        print(
            f"wrote {path}: {said}\n"
            "next:  dpop-agent serve\n"
            f"then, in another terminal:  {'dpop-agent unlock && ' * asks}"
            "dpop-agent key create default"
        )
    return 0


def _found(args: Namespace) -> tuple[str, str, bool]:
    """The configuration, what it says in words, and whether its keys are exportable."""
    if args.module_args and args.module is None:
        raise ConfigurationError(
            "--module-args is for a module that is named", hint="give its path with --module"
        )
    if args.keychain:
        if args.token is not None or args.pin_file is not None:
            raise ConfigurationError(
                "the keychain has no PKCS#11 token and no PIN",
                hint="leave out --token and --pin-file",
            )
        return _with_keychain()
    try:
        return _with_token(args)
    except _NothingHere as e:
        if any(given is not None for given in (args.module, args.token, args.pin_file)):
            raise
        try:
            return _with_keychain(instead=f"{e.message}, hence the keychain; ")
        except ConfigurationError:
            raise e from None


def _with_keychain(instead: str = "") -> tuple[str, str, bool]:
    shown = _keychain(config.default_backend())
    locked = "\nit is locked now: unlock it first" if shown.get("locked") else ""
    label = f" {output.plain(str(shown['label']))!r}" if shown.get("label") else ""
    text = "\n".join(
        (
            "# dpop-agent: where keys live.",
            "",
            "[agent]",
            f"default_store = {_quoted(_KEYCHAIN)}",
            "",
            "# Exportable: any program of this user can read the private keys there.",
            f"[stores.{_KEYCHAIN}]",
            f"type = {_quoted(_KEYCHAIN)}",
            "",
        )
    )
    said = (
        f"store {_KEYCHAIN!r}, the operating system's keychain{label}\n"
        f"note:  {output.plain(instead)}{_EXPORTABLE}{locked}"
    )
    return text, said, True


def _keychain(backend: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the signer says of the keychain; it may hang, so it is asked in a process of its own."""
    what = "the operating system's keychain"
    shown = _asked(["dpop_agent.signer.keychain", backend], what, "use a PKCS#11 token", env)
    if not isinstance(shown, dict):
        raise ConfigurationError(f"{what} can't be looked at", hint="use a PKCS#11 token")
    return shown


def _with_token(args: Namespace) -> tuple[str, str, bool]:
    wanted: config.TokenUri | str | None = args.token
    if args.token is not None and args.token.lower().startswith("pkcs11:"):
        wanted = config.parse_token_uri(args.token)
    store, token = _choose(_look(args.module, args.module_args), wanted, args)
    if not token.has_pin:
        raise ConfigurationError(
            f"the PKCS#11 token {token.label!r} has no user PIN yet",
            hint="set one with the tool that came with its module, then try again",
        )
    source = config.PinSource("prompt")
    if args.pin_file:
        source = config.PinSource("file", os.path.abspath(os.path.expanduser(args.pin_file)))
        for problem, hint in _pin_file_problems(source.argument):
            raise ConfigurationError(problem, hint=hint)
    said = f"store {store!r}, PKCS#11 token {output.plain(token.label)!r}"
    return _toml(store, token, source), said, False


def _exists(path: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is a configuration at {path} already, and it stays as it is",
        hint="see it: dpop-agent config show; or move it away",
    )


def _look(module: str | None, module_args: str) -> list[tuple[str, _Token]]:
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
            raise _NothingHere(
                "no PKCS#11 module is in the places where SoftHSM2, ykcs11, OpenSC and tpm2-pkcs11 "
                "put theirs",
                hint="install one (SoftHSM2 on Debian: apt install softhsm2), or give --module",
            )
    found: list[tuple[str, _Token]] = []
    silent: dict[str, ConfigurationError] = {}
    for store, path in modules:
        try:
            found += [(store, token) for token in _tokens(path, module_args) if token.usable]
        except ConfigurationError as e:
            silent[path] = e
    if found:
        return found
    if silent and len(silent) == len(modules):
        raise next(iter(silent.values()))
    what = f"no initialised PKCS#11 token in {', '.join(p for _, p in modules if p not in silent)}"
    if silent:
        raise ConfigurationError(
            f"{what}, and no answer from {', '.join(silent)}",
            hint=f"ask why: dpop-agent init --module {next(iter(silent))}; or take the operating "
            "system's keychain, whose keys are exportable: dpop-agent init --keychain",
        )
    raise _NothingHere(
        what, hint="plug one in, or make one with its vendor's tool (SoftHSM2's: see README)"
    )


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


def _tokens(module: str, module_args: str) -> list[_Token]:
    """What the module shows, asked in a process of its own: it may crash or hang."""
    what = f"the PKCS#11 module {module}"
    words = ["dpop_agent.signer", "--tokens", module, module_args]
    hint = "correct --module-args, or give another --module"
    shown = _asked(words, what, hint if module_args else "give another --module")
    try:
        return [_Token(module, module_args, one) for one in shown]
    except (TypeError, AttributeError) as e:
        raise ConfigurationError(
            f"{what} shows its tokens in a form that isn't one", hint="give another --module"
        ) from e


def _asked(
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
        raise ConfigurationError(
            f"{what} shows itself in a form that isn't one", hint=otherwise
        ) from e


def _choose(
    found: list[tuple[str, _Token]], wanted: config.TokenUri | str | None, args: Namespace
) -> tuple[str, _Token]:
    fitting = [(store, token) for store, token in found if token.fits(wanted)]
    # One without a PIN, such as NSS's for computing alone, is chosen by nobody.
    fitting = [(store, token) for store, token in fitting if token.has_pin] or fitting
    if wanted is None and any(store == "yubikey" for store, _ in fitting):
        # OpenSC shows the same card, and makes no keys on it.
        fitting = [(store, token) for store, token in fitting if store != "smartcard"]
    if len(fitting) == 1:
        return fitting[0]
    shown = [{"uri": str(t.uri), "model": t.model, "module": t.module} for _, t in fitting or found]
    if not args.json:  # each on lines of its own: they are long, and to be copied
        for one in shown:
            print(output.plain(one["uri"]))
            print(output.plain(f"  {one['model'] or '-'}, {one['module']}"))
    if not fitting:
        raise ConfigurationError(
            "no PKCS#11 token here is the one that --token names",
            hint="give the label or URI of one of those here",
            details={"tokens": shown},
        )
    several_modules = len({t.module for _, t in fitting}) > 1
    raise ConfigurationError(
        f"there are {len(fitting)} PKCS#11 tokens that could be meant",
        hint="name one with --token" + (" and its module with --module" * several_modules),
        details={"tokens": shown},
    )


def _toml(store: str, token: _Token, pin_source: config.PinSource) -> str:
    lines = [
        "# dpop-agent: where keys live.",
        "",
        "[agent]",
        f"default_store = {_quoted(store)}",
        "",
        f"[stores.{store}]",
        'type = "pkcs11"',
        f"module = {_quoted(token.module)}",
        *([f"module_args = {_quoted(token.module_args)}"] if token.module_args else []),
        f"uri = {_quoted(str(token.uri))}",
        f"pin_source = {_quoted(str(pin_source))}",
    ]
    for module, variable in _FOUND_BY:
        place = os.environ.get(variable)
        if place and module in os.path.basename(token.module):
            lines.append(f"env = {{ {variable} = {_quoted(os.path.abspath(place))} }}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A basic string of TOML: JSON's escapes, and DEL too."""
    import json

    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _write(path: str, text: str) -> None:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise ConfigurationError(
            "a path has bytes that aren't UTF-8", hint="give the file another name"
        ) from e
    try:
        paths.make_private_folder(os.path.dirname(path))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as e:
        raise _exists(path) from e
    except OSError as e:
        raise ConfigurationError(
            f"{path} can't be written: {e.strerror}",
            hint="correct that, or set DPOP_AGENT_CONFIG to another file",
        ) from e
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        os.unlink(path)  # half of one would be in the way of the next init
        raise


def _show(args: Namespace) -> int:
    found = config.load()
    if args.json:
        output.print_json(
            {
                "path": found.path,
                "default_store": found.default_store,
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
    for store in found.stores.values():
        lines += [
            "",
            f"store {store.name} ({store.type})",
            *(f"  {name:11}  {value}" for name, value in _settings(store).items()),
            *(f"  env          {name}={value}" for name, value in store.env.items()),
        ]
        if store.type == _KEYCHAIN:
            lines.append(f"  note         {_EXPORTABLE}")
    print("\n".join(map(output.plain, lines)))
    return 0


def _settings(store: config.StoreConfig) -> dict[str, str]:
    """What the store's type has beyond name and environment."""
    return {
        name: str(value)
        for name in ("module", "module_args", "uri", "pin_source", "backend")
        if (value := getattr(store, name))
    }


def _check(args: Namespace) -> int:
    found = config.load()
    problems = [
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
        problems.append((f"the PKCS#11 module {store.module} can't be read", "see its mode"))
    if store.pin_source.kind == "file":
        problems += _pin_file_problems(store.pin_source.argument)
    elif store.pin_source.kind == "keychain":
        problems += _keychain_problems(config.default_backend(), store.env)
    return problems


def _keychain_problems(backend: str, env: Mapping[str, str]) -> list[tuple[str, str]]:
    try:
        _keychain(backend, env)
    except ConfigurationError as e:
        return [(e.message, e.hint)]
    return []


def _pin_file_problems(path: str) -> list[tuple[str, str]]:
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
    problems = []
    if info.st_uid != os.getuid():
        problems.append(
            (
                f"the PIN file {path} belongs to uid {info.st_uid}, not to uid {os.getuid()}",
                "use one of your own",
            )
        )
    if info.st_mode & 0o077:
        problems.append(
            (
                f"the PIN file {path} has mode {stat.S_IMODE(info.st_mode):04o}: "
                "others can read or change it",
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
