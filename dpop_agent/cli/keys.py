"""`key` and its verbs; `create`, `list`, `show`, `set` and `adopt` are here."""

from __future__ import annotations

import argparse

from dpop_agent.cli import (
    arguments,
    authorizing,
    blocking,
    calls,
    generations,
    listing,
    origins,
    recovering,
    rotating,
    rules,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

_STAYS = "it stays as it is"
_REFUSED_BY = {
    "Ed25519": "Keycloak, Spring, Nimbus, better-auth, express-oauth2-jwt-bearer and the MCP suite",
    "EdDSA": "Spring and Nimbus",
}
"""Servers that refuse a proof whose `alg` has that name, of those that were tried."""

_TIMES = ("rotate_every_s", "drain_s", "max_drain_s")


def add_key(parser: arguments.Parser) -> None:
    """`dpop-agent key` and its verbs."""
    parser.description = "Make, list, rotate, block and destroy keys."
    verbs = parser.add_verbs()
    add_create(verbs)
    add_list(verbs)
    add_show(verbs)
    add_set(verbs)
    rotating.add_rotate(verbs)
    rotating.add_activate(verbs)
    blocking.add_suspend(verbs)
    blocking.add_resume(verbs)
    blocking.add_compromise(verbs)
    blocking.add_destroy(verbs)
    blocking.add_forget(verbs)
    add_adopt(verbs)


def add_create(verbs: arguments.Verbs) -> None:
    """`dpop-agent key create`."""
    sub = arguments.add_verb(verbs, "create", "Make a key in a store", _create)
    sub.add_argument("key", metavar="NAME", type=arguments.key_name)
    _add_store_and_alg(sub)
    authorizing.add_slot(sub)
    origins.add_origins(sub.add_mutually_exclusive_group(required=True))
    rules.add_rules(sub)
    sub.add_argument(
        "--allow-sign-proof",
        action="store_true",
        help="also sign proofs whose claims a library built",
    )
    _add_times(sub, every="never", drain="7d", max_drain="90d")


def _create(args: Namespace) -> int:
    params = {"key": args.key} | origins.given(args) | rules.given(args) | _times(args)
    params |= authorizing.slot_params(args)
    for name in ("store", "alg"):
        if getattr(args, name) is not None:
            params[name] = getattr(args, name)
    if args.allow_sign_proof:
        params["allow_sign_proof"] = True
    result = authorizing.make("key.create", params)
    lines = listing.table(result["keys"]) + _who_refuses(args.alg)
    return calls.answer(args, result, lines)


def _who_refuses(alg: str | None) -> list[str]:
    """What to know of a key for that algorithm, in lines."""
    if alg not in _REFUSED_BY:
        return []
    return [
        "",
        f"Proofs that say {alg} are refused by {_REFUSED_BY[alg]}.",
        "A key for ES256 is taken by all servers that were tried.",
    ]


def add_list(verbs: arguments.Verbs) -> None:
    """`dpop-agent key list`."""
    sub = arguments.add_verb(verbs, "list", "Show all keys at a glance", _list)
    sub.add_argument(
        "key", metavar="NAME", nargs="?", type=arguments.key_name, help="by default all"
    )
    sub.add_argument("--all", action="store_true", help="the destroyed generations too")


def _list(args: Namespace) -> int:
    keys = calls.keys(args.key, include_destroyed=args.all)
    if keys:
        lines = listing.table(keys) + listing.taken(keys)
    else:
        lines = [
            "there are no keys yet; make one with: dpop-agent key create default --origin "
            "https://api.example.com (your server's), or --any-origin"
        ]
    return calls.answer(args, {"keys": keys}, lines)


def add_show(verbs: arguments.Verbs) -> None:
    """`dpop-agent key show`."""
    sub = arguments.add_verb(verbs, "show", "Show all there is to know about one key", _show)
    sub.add_argument("key", metavar="NAME", type=arguments.generation, help="or NAME@N")
    sub.add_argument(
        "--attestation",
        action="store_true",
        help="print the certificates (PEM) by which the card says where the key was made",
    )


def _show(args: Namespace) -> int:
    name, number = args.key
    key = calls.the_key(name, include_destroyed=number is not None)
    if args.attestation:
        return _attestation(args, key, number)
    if number is not None:
        key = key | {"generations": [calls.generation(key, number)]}
        return calls.answer(args, {"keys": [key]}, listing.details(key))
    return calls.answer(args, {"keys": [key]}, listing.details(key) + listing.taken([key]))


def _attestation(args: Namespace, key: calls.Key, number: int | None) -> int:
    if number is None:
        number = listing.active_number(key)
    params = {"key": key["key"], "generation": number}
    result = calls.admin_call("key.attestation", params)
    return calls.answer(args, result, ["".join(result["certificates"]).rstrip()])


def add_set(verbs: arguments.Verbs) -> None:
    """`dpop-agent key set`."""
    sub = arguments.add_verb(
        verbs,
        "set",
        "Change what a key may be used for, and when it rotates",
        _set,
        "What isn't given stays as it is.",
    )
    sub.add_argument("key", metavar="NAME", type=arguments.key_name)
    origins.add_origins(sub.add_mutually_exclusive_group())
    rules.add_rules(sub, others=True)
    allow = sub.add_mutually_exclusive_group()
    allow.add_argument("--allow-sign-proof", action="store_true", default=None)
    allow.add_argument("--no-allow-sign-proof", dest="allow_sign_proof", action="store_false")
    _add_times(sub, every=_STAYS, drain=_STAYS, max_drain=_STAYS)
    sub.add_argument(
        "--touch",
        choices=("yes", "no", "auto"),
        help="whether its signatures wait for a touch; auto: as the card says; by default "
        f"{_STAYS}",
    )


def _set(args: Namespace) -> int:
    params = {"key": args.key} | origins.given(args) | rules.given(args) | _times(args)
    if args.allow_sign_proof is not None:
        params["allow_sign_proof"] = args.allow_sign_proof
    if args.touch is not None:
        params["touch"] = {"yes": True, "no": False, "auto": None}[args.touch]
    if len(params) == 1:
        args.usage(
            "nothing to set: give --origin, --any-origin, --method, --any-method, --path, "
            "--any-path, --[no-]require-ath, --rate, --any-rate, --confirm, "
            "--[no-]allow-sign-proof, --rotate-every, --drain, --max-drain or --touch"
        )
    result = calls.admin("key.set", params)
    lines = [line for key in result["keys"] for line in listing.policy(key)]
    return calls.answer(args, result, lines)


def add_adopt(verbs: arguments.Verbs) -> None:
    """`dpop-agent key adopt`."""
    sub = arguments.add_verb(
        verbs,
        "adopt",
        "Adopt a private key that is already in a store",
        _adopt,
        "It becomes a staged generation, shared with whoever else uses it. A new key wants "
        "--origin or --any-origin; one that is there keeps its own.",
    )
    sub.add_argument(
        "key",
        metavar="NAME",
        nargs="?",
        type=arguments.key_name,
        help="an existing key, or a new one",
    )
    which = sub.add_mutually_exclusive_group()
    which.add_argument(
        "--ref",
        metavar="HEX",
        type=arguments.ref,
        help="the object's id (CKA_ID), as dpop-agent status shows it",
    )
    which.add_argument(
        "--label", metavar="TEXT", help="or its label (CKA_LABEL), if no other there has the same"
    )
    sub.add_argument(
        "--all",
        action="store_true",
        help="after a lost ledger: all that dpop-agent made in all stores or in --store S, by "
        "their labels; suspended until you resume them",
    )
    _add_store_and_alg(sub)
    origins.add_origins(sub.add_mutually_exclusive_group())
    sub.set_defaults(usage=sub.error)


def _adopt(args: Namespace) -> int:
    if args.all:
        named = (args.key, args.ref, args.label, args.origins)
        if any(given is not None for given in named):
            args.usage("--all takes neither NAME nor --ref, --label or origins")
        return recovering.adopt_all(args)
    if args.key is None or (args.ref is None and args.label is None):
        args.usage("give NAME and --ref HEX (or --label TEXT), or --all")
    params = {"key": args.key} | origins.given(args)
    for option in ("ref", "label", "store", "alg"):
        if getattr(args, option) is not None:
            params[option] = getattr(args, option)
    result = calls.admin("key.adopt", params)
    key = generations.whole(result)
    adopted = max(key["generations"], key=lambda g: int(g["generation"]))
    lines = [listing.with_jkt(key, adopted)]
    if adopted["exportable"]:
        lines.append("It is exportable, or was: somebody may have a copy of the private key.")
    if not adopted["local"]:
        lines.append("It isn't known to have been made in this store.")
    lines += [
        "It is shared: another agent may use it too, so no schedule destroys it.",
        f"to sign with it: dpop-agent key activate {listing.name(key, adopted)}",
        *_who_refuses(key["alg"]),
    ]
    return calls.answer(args, result, lines)


def _times(args: Namespace) -> dict[str, Any]:
    """Those that were given; None is one of them."""
    return {name: getattr(args, name) for name in _TIMES if name in args}


def _add_store_and_alg(parser: Any) -> None:
    parser.add_argument(
        "--store", metavar="S", help="the store; by default the configuration's default_store"
    )
    parser.add_argument(
        "--alg",
        type=_alg,
        help="by default ES256, which all servers accept; else ES384, ES512, RS256, PS256, EdDSA "
        "or Ed25519. Of the servers that were tried, six refuse the name "
        "Ed25519 in a proof's header, and two EdDSA, the older name of the same; RFC 9864 prefers "
        "Ed25519",
    )


def _add_times(parser: Any, *, every: str, drain: str, max_drain: str) -> None:
    """`--rotate-every`, `--drain` and `--max-drain`, and what holds where they aren't given."""
    parser.add_argument(
        "--rotate-every",
        dest="rotate_every_s",
        metavar="TIME",
        type=arguments.interval,
        default=argparse.SUPPRESS,
        help=f"such as 30d: how often to rotate automatically; or never; by default {every}",
    )
    arguments.add_drain(parser, f"of an old generation; by default {drain}", argparse.SUPPRESS)
    parser.add_argument(
        "--max-drain",
        dest="max_drain_s",
        metavar="TIME",
        type=arguments.duration,
        default=argparse.SUPPRESS,
        help="such as 90d: an old generation stops signing then, however much it is used; by "
        f"default {max_drain}",
    )


def _alg(text: str) -> str:
    from dpop_agent.jose import ALGORITHMS

    if text not in ALGORITHMS:
        raise argparse.ArgumentTypeError(f"it has to be one of: {', '.join(ALGORITHMS)}")
    return text
