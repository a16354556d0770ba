"""`init`."""

from __future__ import annotations

import os

from dpop_agent import config, paths
from dpop_agent.cli import arguments, output
from dpop_agent.cli.checks.setup import pin_file
from dpop_agent.cli.configuration import EXPORTABLE, KEYCHAIN
from dpop_agent.cli.discovery import ALONE, NothingHere, Token, keychain, look, variables_of
from dpop_agent.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def add_init(parser: arguments.Parser) -> None:
    """`dpop-agent init`."""
    parser.description = "See what is here and write a configuration that works."
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--module", metavar="PATH", help="a PKCS#11 module; by default init looks for some"
    )
    where.add_argument(
        "--keychain",
        action="store_true",
        help="the operating system's keychain, whose keys are exportable; by default used if no "
        "PKCS#11 token is found, and every module answered: a card may be behind one that doesn't",
    )
    parser.add_argument(
        "--module-args",
        metavar="TEXT",
        default="",
        help="arguments for C_Initialize, for a module that wants some (NSS); by default none",
    )
    parser.add_argument(
        "--token",
        metavar="LABEL",
        help="the PKCS#11 token's label or RFC 7512 URI; by default the only one here",
    )
    parser.add_argument(
        "--pin-file",
        metavar="PATH",
        help="a file of mode 0600 with its PIN; by default dpop-agent unlock asks for it",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the configuration, write nothing"
    )
    arguments.add_json(parser)
    parser.set_defaults(run=_init)


def _init(args: Namespace) -> int:
    path = os.path.abspath(paths.config_file())
    if os.path.lexists(path) and not args.dry_run:
        raise _exists(path)
    text, said, exportable = _proposal(args)
    config.parse(text, path)  # what the agent couldn't read isn't written
    if not args.dry_run:
        _write(path, text)
    if args.json:
        told = {"config": path, "written": not args.dry_run, "text": text}
        output.print_json(told | ({"exportable": True} if exportable else {}))
    elif args.dry_run:
        there = "is there already, and takes a section of this under a name that it hasn't yet"
        print(f"# {path} {there if os.path.lexists(path) else 'would be'}\n{text}", end="")
    else:
        asks = 'pin_source = "prompt"' in text
        print(
            f"wrote {path}: {said}\n"
            "next:  dpop-agent serve\n"
            f"then, in another terminal:  {'dpop-agent unlock && ' * asks}"
            "dpop-agent key create default --origin https://api.example.com\n"
            "(your server's origin, and --origin again for another; or --any-origin)"
        )
    return 0


def _proposal(args: Namespace) -> tuple[str, str, bool]:
    """The configuration, what it says in words, and whether its keys are exportable."""
    if args.module_args and args.module is None:
        raise ConfigurationError(
            "--module-args needs --module", hint="give the module's path with --module"
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
    except NothingHere as e:
        if any(given is not None for given in (args.module, args.token, args.pin_file)):
            raise
        try:
            return _with_keychain(instead=e)
        except ConfigurationError:
            raise e from None


def _with_keychain(instead: NothingHere | None = None) -> tuple[str, str, bool]:
    """`instead`: why it isn't a PKCS#11 token, where nobody asked for a keychain."""
    shown = keychain(config.default_backend())
    locked = "\nit is locked now: unlock it first" if shown.get("locked") else ""
    label = f" {output.plain(str(shown['label']))!r}" if shown.get("label") else ""
    text = "\n".join(
        (
            "# dpop-agent: where keys live.",
            "",
            "[agent]",
            f"default_store = {_quoted(KEYCHAIN)}",
            "",
            "# Exportable: any program of this user can read the private keys there.",
            f"[stores.{KEYCHAIN}]",
            f"type = {_quoted(KEYCHAIN)}",
            "",
        )
    )
    why = f"{instead.message}, so it is the keychain; " if instead is not None else ""
    said = (
        f"store {KEYCHAIN!r}, the operating system's keychain{label}\n"
        f"note:  {output.plain(why)}{EXPORTABLE}{locked}"
    )
    if instead is not None:
        said += f"\nfor a PKCS#11 token:  move the file away, then {output.plain(instead.hint)}"
    return text, said, True


def _with_token(args: Namespace) -> tuple[str, str, bool]:
    wanted: config.TokenUri | str | None = args.token
    if args.token is not None and args.token.lower().startswith("pkcs11:"):
        wanted = config.parse_token_uri(args.token)
    store, token = _choose(look(args.module, args.module_args), wanted, args)
    if token.uri is None:
        raise ConfigurationError(
            f"the PKCS#11 token {output.plain(token.label)!r} can't be named: another looks the "
            "same, or its label, serial, manufacturer and model aren't text",
            hint=ALONE,
        )
    source = config.PinSource("prompt" if token.has_login else "none")
    if args.pin_file and not token.has_login:
        raise ConfigurationError(
            f"the PKCS#11 token {output.plain(token.label)!r} has no login: it wants no PIN",
            hint="leave out --pin-file",
        )
    if args.pin_file:
        source = config.PinSource("file", os.path.abspath(os.path.expanduser(args.pin_file)))
        for problem in pin_file("--pin-file", source.argument):
            raise ConfigurationError(problem.what, hint=problem.mend)
    said = f"store {store!r}, PKCS#11 token {output.plain(token.label)!r}"
    for name, value in _found_by(token).items():
        said += f"\nfound by:  {name}={output.plain(value)}, kept in its env"
    if token.has_login and not token.has_pin:
        said += (
            "\nnote:  it says that it has no user PIN: unless it has, set one with the tool that "
            "came with its module"
        )
    return _toml(token, token.uri, store=store, pin_source=source), said, False


def _exists(path: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is a configuration at {path} already, and it stays as it is",
        hint="to see it: dpop-agent config show; or move it away",
    )


def _choose(
    found: list[tuple[str, Token]], wanted: config.TokenUri | str | None, args: Namespace
) -> tuple[str, Token]:
    fitting = [(store, token) for store, token in found if token.fits(wanted)]
    # One without a login, such as NSS's for computing alone, is chosen by nobody.
    fitting = [(store, token) for store, token in fitting if token.has_login] or fitting
    if wanted is None and any(store == "yubikey" for store, _ in fitting):
        # OpenSC shows the same card, and makes no keys on it.
        fitting = [(store, token) for store, token in fitting if store != "smartcard"]
    if len(fitting) == 1:
        return fitting[0]
    shown = [
        {"uri": str(t.uri or t.whole_uri), "model": t.model, "module": t.module}
        for _, t in fitting or found
    ]
    if not args.json:  # each on lines of its own: they are long, and to be copied
        for one in shown:
            print(output.plain(one["uri"]))
            print(output.plain(f"  {one['model'] or '-'}, {one['module']}"))
    if not fitting:
        raise ConfigurationError(
            "no PKCS#11 token here matches --token",
            hint="give the label or URI of one that is here",
            details={"tokens": shown},
        )
    several_modules = len({t.module for _, t in fitting}) > 1
    hint = "name one with --token" + (" and its module with --module" * several_modules)
    if all(t.uri is None for _, t in fitting):
        hint = f"no URI tells them apart: {ALONE}"
    raise ConfigurationError(
        f"there are {len(fitting)} PKCS#11 tokens that could be meant",
        hint=hint,
        details={"tokens": shown},
    )


def _toml(token: Token, uri: config.TokenUri, *, store: str, pin_source: config.PinSource) -> str:
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
        f"uri = {_quoted(str(uri))}",
        f"pin_source = {_quoted(str(pin_source))}",
    ]
    env = _found_by(token)
    if env:
        pairs = ", ".join(f"{name} = {_quoted(value)}" for name, value in env.items())
        lines.append(f"env = {{ {pairs} }}")
    return "\n".join(lines) + "\n"


def _found_by(token: Token) -> dict[str, str]:
    """The variables that it may take to find it again, each with its value."""
    given = {name: os.environ[name] for name in variables_of(token.module) if os.environ.get(name)}
    # A path is meant from here, an address (unix:path=/…) is one anywhere.
    return {
        name: value if name.endswith("_ADDRESS") else os.path.abspath(value)
        for name, value in given.items()
    }


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
        paths.make_private_folder(
            os.path.dirname(path),
            "the configuration's folder",
            instead=paths.ANOTHER_CONFIG_FILE,
        )
        paths.write_new(path, [data])
    except FileExistsError as e:
        raise _exists(path) from e
    except OSError as e:
        raise ConfigurationError(
            f"{path} can't be written: {e.strerror}",
            hint="correct that, or set DPOP_AGENT_CONFIG to another file",
        ) from e
