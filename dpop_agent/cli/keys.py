"""`key create | list | show | destroy | set`."""

from __future__ import annotations

import sys

from dpop_agent import paths
from dpop_agent.cli import arguments, output
from dpop_agent.errors import Cancelled, ConfigurationError, KeyUnknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable
    from typing import Any

    Key = dict[str, Any]

ADMIN_TIMEOUT_S = 60.0
"""A token may take half a minute to find the primes of an RSA key."""


def parser(verb: str) -> arguments.Parser:
    """The parser of `key` and its verbs."""
    found = arguments.verb(verb, "Create, list, show, set and destroy keys.")
    verbs = found.add_subparsers(metavar="VERB", required=True)

    def add(name: str, what: str, run: Callable[[Namespace], int]) -> arguments.Parser:
        sub: arguments.Parser = verbs.add_parser(name, help=what, description=f"{what}.")
        arguments.add_json(sub)
        sub.set_defaults(run=run)
        return sub

    sub = add("create", "Make a key in a store", _create)
    sub.add_argument("key", metavar="NAME", type=arguments.key_name)
    sub.add_argument("--store", metavar="S", help="the store; else the configuration's default")
    sub.add_argument("--alg", type=_alg, help="ES256 where none is given: all servers take it")
    _add_origins(sub)
    sub.add_argument(
        "--allow-sign-proof",
        action="store_true",
        help="also sign proofs whose claims a library built",
    )

    sub = add("list", "All keys at a glance", _list)
    sub.add_argument("key", metavar="NAME", nargs="?", type=arguments.key_name)
    sub.add_argument("--all", action="store_true", help="the destroyed generations too")

    sub = add("show", "All there is to know of one key", _show)
    sub.add_argument("key", metavar="NAME", type=arguments.generation, help="or NAME@N")

    sub = add("destroy", "Destroy one generation's private key, for ever", _destroy)
    sub.add_argument("key", metavar="NAME@N", type=arguments.generation)
    sub.add_argument("--yes", action="store_true", help="don't ask")

    sub = add("set", "Change what a key may be used for", _set)
    sub.add_argument("key", metavar="NAME", type=arguments.key_name)
    origins = sub.add_mutually_exclusive_group()
    _add_origins(origins)
    origins.add_argument("--any-origin", action="store_true", help="proofs for every origin")
    allow = sub.add_mutually_exclusive_group()
    allow.add_argument("--allow-sign-proof", action="store_true", default=None)
    allow.add_argument("--no-allow-sign-proof", dest="allow_sign_proof", action="store_false")
    sub.set_defaults(usage=sub.error)
    return found


def _add_origins(parser: Any) -> None:
    parser.add_argument(
        "--origin",
        action="append",
        dest="origins",
        metavar="ORIGIN",
        type=arguments.origin,
        help="such as https://api.example.com: proofs for these alone; may stand several times",
    )


def _alg(text: str) -> str:
    import argparse

    from dpop_agent.jose import ALGORITHMS

    if text not in ALGORITHMS:
        raise argparse.ArgumentTypeError(f"there are: {', '.join(ALGORITHMS)}")
    return text


def _create(args: Namespace) -> int:
    params = {"key": args.key}
    for name in ("store", "alg", "origins"):
        if getattr(args, name) is not None:
            params[name] = getattr(args, name)
    if args.allow_sign_proof:
        params["allow_sign_proof"] = True
    result = _admin("key.create", params)
    return _print(args, result, _table(result["keys"]))


def _list(args: Namespace) -> int:
    keys = _keys(args.key, include_destroyed=args.all)
    if keys:
        lines = _table(keys)
    else:
        lines = ["there are no keys yet; make one with: dpop-agent key create default"]
    return _print(args, {"keys": keys}, lines)


def _show(args: Namespace) -> int:
    name, number = args.key
    key = _only(name, _keys(name, include_destroyed=number is not None))
    if number is not None:
        key = key | {"generations": [_generation(key, number)]}
    return _print(args, {"keys": [key]}, _details(key))


def _destroy(args: Namespace) -> int:
    name, number = args.key
    if number is None or not args.yes:
        key = _only(name, _keys(name))
        if number is None:
            number = _the_only_generation(key)
        if not args.yes and not _confirmed(key, _generation(key, number)):
            raise Cancelled("nothing was destroyed")
    result = _admin("key.destroy", {"key": name, "generation": number})
    return _print(args, result, [f"{name}@{number} is destroyed"])


def _set(args: Namespace) -> int:
    params: dict[str, Any] = {"key": args.key}
    if args.any_origin:
        params["origins"] = []
    elif args.origins is not None:
        params["origins"] = args.origins
    if args.allow_sign_proof is not None:
        params["allow_sign_proof"] = args.allow_sign_proof
    if len(params) == 1:
        args.usage("nothing to set: give --origin, --any-origin or --[no-]allow-sign-proof")
    result = _admin("key.set", params)
    return _print(args, result, [line for key in result["keys"] for line in _policy(key)])


def _admin(method: str, params: dict[str, Any]) -> dict[str, Any]:
    import secrets

    from dpop_agent.client.sync import AgentClient

    path = paths.admin_socket(paths.agent_socket())
    with AgentClient(path, timeout=ADMIN_TIMEOUT_S) as agent:
        result: dict[str, Any] = agent.call(method, params | {"request_id": secrets.token_hex(16)})
    return result


def _keys(name: str | None, *, include_destroyed: bool = False) -> list[Key]:
    from dpop_agent.client.sync import AgentClient

    with AgentClient(paths.agent_socket()) as agent:
        return agent.keys(name, include_destroyed=include_destroyed)


def _only(name: str, keys: list[Key]) -> Key:
    if not keys:
        raise KeyUnknown(f"there is no key {name}", hint="see: dpop-agent key list --all")
    return keys[0]


def _generation(key: Key, number: int) -> dict[str, Any]:
    for generation in key["generations"]:
        if generation["generation"] == number:
            found: dict[str, Any] = generation
            return found
    raise KeyUnknown(
        f"the key {key['key']} has no generation {number}",
        hint=f"see: dpop-agent key list {key['key']} --all",
    )


def _the_only_generation(key: Key) -> int:
    numbers = [g["generation"] for g in key["generations"] if g["state"] != "destroyed"]
    if len(numbers) != 1:
        name = key["key"]
        raise ConfigurationError(
            f"the key {name} has {len(numbers) or 'no'} generations that could be meant",
            hint=f"name one: {', '.join(f'{name}@{n}' for n in numbers)}" if numbers else "",
        )
    number: int = numbers[0]
    return number


def _confirmed(key: Key, generation: dict[str, Any]) -> bool:
    name = f"{key['key']}@{generation['generation']}"
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"destroying {name} can't be undone, and nobody can be asked",
            hint=f"if you mean it: dpop-agent key destroy {name} --yes",
        )
    question = (
        f"{name} ({generation['state']}, jkt {generation['jkt']}) in the store {key['store']}: "
        "access tokens bound to it become useless, and this can't be undone.\n"
        f"Destroy {name}? Type yes: "
    )
    print("\n".join(map(output.plain, question.split("\n"))), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() == "yes"


def _print(args: Namespace, result: dict[str, Any], lines: list[str]) -> int:
    if args.json:
        output.print_json(result)
    else:
        print("\n".join(lines))
    return 0


_HEAD = ("KEY", "STATE", "ALG", "STORE", "PROTECTION", "CREATED", "LAST USED", "JKT")


def _table(keys: list[Key]) -> list[str]:
    rows = [
        (
            f"{key['key']}@{generation['generation']}",
            _state(generation),
            key["alg"],
            key["store"],
            _protection(generation),
            output.day(generation.get("created")),
            output.since(generation.get("last_used")),
            generation["jkt"],
        )
        for key in keys
        for generation in key["generations"]
    ]
    return output.table(
        _HEAD, rows, drop=("CREATED", "LAST USED", "STORE", "ALG", "PROTECTION", "STATE")
    )


def _state(generation: dict[str, Any]) -> str:
    missing = ", missing" if generation.get("missing") else ""
    return f"{generation['state']}{missing}"


def _protection(generation: dict[str, Any]) -> str:
    exportable = ", exportable" if generation.get("exportable") else ""
    return f"{generation.get('protection') or 'unknown'}{exportable}"


def _policy(key: Key) -> list[str]:
    return [
        output.plain(line)
        for line in (
            f"{key['key']}: {key['alg']} in the store {key['store']}",
            f"  origins     {', '.join(key['origins']) or 'any'}",
            f"  sign-proof  {'allowed' if key['allow_sign_proof'] else 'not allowed'}",
        )
    ]


def _details(key: Key) -> list[str]:
    import json

    lines = _policy(key)
    for generation in key["generations"]:
        where = "made there" if generation.get("local") else "not made there, or not known"
        jwk = generation.get("jwk")
        lines += [
            "",
            f"{key['key']}@{generation['generation']}: {_state(generation)}",
            f"  jkt         {generation['jkt']}",
            f"  jwk         {json.dumps(jwk, separators=(',', ':')) if jwk else '-'}",
            f"  protection  {_protection(generation)}, {where}",
            f"  created     {output.minute(generation.get('created')) or '-'}",
            f"  last used   {output.minute(generation.get('last_used')) or 'never'}",
        ]
    return [output.plain(line) for line in lines]
