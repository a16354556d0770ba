"""`config set | unset`: one setting is changed, and all else stays as it was written."""

from __future__ import annotations

from dpop_agent import config, paths
from dpop_agent.cli import arguments, output, replacing
from dpop_agent.errors import ConfigurationError
from dpop_agent.spelling import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from dpop_agent.cli.replacing import Check

    _Path = tuple[str, ...]
    """The names of the tables, from the outermost on, and of the setting."""


def add_set(verbs: arguments.Verbs, check: Check) -> None:
    """`config set`."""
    parser = arguments.add_verb(
        verbs,
        "set",
        "Change one setting; comments and layout stay",
        lambda args: _set(args, check),
        "As in: config set agent.lock_after 15m. Put -- before words that begin with a dash.",
    )
    _add_name(parser)
    parser.add_argument(
        "value", metavar="VALUE", nargs="+", help="its value; of a list, each word or all in one"
    )


def add_unset(verbs: arguments.Verbs, check: Check) -> None:
    """`config unset`."""
    parser = arguments.add_verb(
        verbs,
        "unset",
        "Leave out one setting; comments and layout stay",
        lambda args: _unset(args, check),
    )
    _add_name(parser)


def _add_name(parser: arguments.Parser) -> None:
    parser.add_argument(
        "name",
        metavar="SETTING",
        help="as in agent.lock_after, stores.NAME.signers or stores.NAME.env.VARIABLE",
    )


def _set(args: Namespace, check: Check) -> int:
    def change(document: Any, path: _Path, kind: type) -> None:
        import tomlkit

        value = _value(args.value, kind, args.name)
        *above, name = path
        for step in above:
            if step not in document:
                empty = tomlkit.inline_table() if step == "env" else tomlkit.table()
                _put(document, step, empty)
            document = document[step]
            if not hasattr(document, "items"):
                return  # the check refuses it
        _put(document, name, value)

    return _change(args, change, check)


def _unset(args: Namespace, check: Check) -> int:
    def change(document: Any, path: _Path, _: type) -> None:
        *above, name = path
        for step in above:
            document = document.get(step, {})
            if not hasattr(document, "items"):
                return
        if name in document:
            del document[name]

    return _change(args, change, check)


def _change(args: Namespace, change: Callable[[Any, _Path, type], None], check: Check) -> int:
    path = paths.config_file()
    with replacing.locked(path):
        before = config.read(path)
        table = _parsed(before, path)
        place, kind = _place(args.name, table)
        text = _changed(before, lambda document: change(document, place, kind), path)
        replacing.require_sound(text, path, before, check)
        changed = _parsed(text, path) != table
        if changed:
            replacing.replace(path, before, text)
    if args.json:
        output.print_json({"path": path, "changed": changed})
    elif not changed:
        print(output.plain(f"{path} is as it was: {_told(text, place)}"))
    else:
        print(output.plain(f"wrote {path}: {_told(text, place)}") + f"\n{replacing.NEXT}")
    return 0


def _told(text: str, place: _Path) -> str:
    """What it says of that setting now."""
    import tomllib

    import tomlkit

    found: Any = tomllib.loads(text)
    for step in place:
        if step not in found:
            return f"without {'.'.join(place)}"
        found = found[step]
    return f"{'.'.join(place)} = {tomlkit.item(found).as_string()}"


def _parsed(text: str, path: str) -> dict[str, Any]:
    """What it says; a configuration that isn't TOML is refused as the check does."""
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        config.parse(text, path)
        raise


def _place(name: str, table: Mapping[str, Any]) -> tuple[_Path, type]:
    """Where the setting of that name is, and what it is written as.

    Raises:
        ConfigurationError: there is none.
    """
    there = known(table)
    if name in there:
        return there[name]
    above, dot, variable = name.rpartition(".")
    if dot and variable and above in there and there[above][1] is dict:
        return (*there[above][0], variable), str
    raise ConfigurationError(f"there is no setting {name[:80]!r} here", hint=nearest(name, there))


def known(table: Mapping[str, Any]) -> dict[str, tuple[_Path, type]]:
    """The settings that a configuration may have with the stores that it has: where each is, and
    what it is written as.
    """
    found: dict[str, tuple[_Path, type]] = {
        f"agent.{setting}": (("agent", setting), kind) for setting, kind in config.AGENT.items()
    }
    stores = table.get("stores")
    for store, settings in stores.items() if isinstance(stores, dict) else ():
        kind_of_store = settings.get("type") if isinstance(settings, dict) else None
        of_type = config.SETTINGS_BY_TYPE.get(str(kind_of_store), config.SETTINGS_BY_TYPE["pkcs11"])
        for setting, kind in of_type.items():
            found[f"stores.{store}.{setting}"] = (("stores", store, setting), kind)
    return found


def _value(words: Sequence[str], kind: type, name: str) -> Any:
    """What was typed, as the configuration writes it; of the wrong kind it stays text, which the
    check refuses.
    """
    import re
    import shlex

    try:
        "".join(words).encode()
    except UnicodeEncodeError as e:
        raise ConfigurationError(f"the value of {name} isn't UTF-8", hint="type it as UTF-8") from e
    if len(words) > 1 and kind is not list:
        raise ConfigurationError(
            f"{name} takes one value, not {len(words)}", hint='put one with blanks in "…"'
        )
    (word, *others) = words
    if kind in (list, dict) and not others and word[:1] in ("[", "{"):
        import tomllib

        try:
            return tomllib.loads(f"value = {word}")["value"]
        except (ValueError, RecursionError):
            return word
    if kind is list:
        try:
            return [*words] if others else shlex.split(word)
        except ValueError:
            return word
    if kind is int and re.fullmatch(r"[+-]?[0-9]{1,18}", word):
        return int(word)
    return word


def _put(table: Any, name: str, value: Any) -> None:
    """Set it; a new one comes after the others, before what stands above the next section."""
    if name in table:
        table[name] = value
        return
    container = getattr(table, "value", table)
    body: list[tuple[Any, Any]] = getattr(container, "body", [])
    behind: list[tuple[Any, Any]] = []
    while body and body[-1][0] is None and table is not container:
        behind.insert(0, body.pop())
    table[name] = value
    body += behind


def _changed(text: str, change: Callable[[Any], None], path: str) -> str:
    """The text after a change of its document, all else as it was written."""
    import tomllib

    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    unix, expected = text.replace("\r\n", "\n"), tomllib.loads(text)
    change(expected)
    changed = ""
    try:
        document = tomlkit.parse(unix)
        change(document)
        changed = tomlkit.dumps(document)
        kept = tomllib.loads(changed) == expected
    except (TOMLKitError, tomllib.TOMLDecodeError):
        kept = False
    if not kept:
        raise ConfigurationError(
            f"{path} is written in a way in which one setting can't be changed by itself",
            hint="dpop-agent config edit",
        )
    return changed.replace("\n", "\r\n") if unix != text else changed
