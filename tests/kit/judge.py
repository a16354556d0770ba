"""What has to hold of every request, and what a case says of its own: a list of faults."""

from __future__ import annotations

from http.cookies import SimpleCookie
from typing import Any

from tests.kit.servers import Servers
from tests.kit.wire import ProofSeen, Seen, hashed

MAX_ENDLESS = 16 * 1024 * 1024
"""Bytes of an endless body that a client may have been sent: what fits the sockets' buffers."""

LISTED = ("as", "api", "proxy")


def faults(case: dict[str, Any], came: list[dict[str, Any]], servers: Servers) -> list[str]:
    """Everything that isn't as the case has it.

    Args:
        case: with its places filled in.
        came: what the client reported, as README.md has it.
        servers: after the client was closed.
    """
    found = [fault for seen in servers.seen for fault in _of_any_request(seen, servers)]
    jtis = [seen.proof.claims.get("jti") for seen in servers.seen if seen.proof]
    if len(jtis) != len(set(jtis)):
        found.append("a proof was sent twice (a repeated jti)")
    found += _of_results(case, came)
    found += _of_wire(case, servers.seen)
    found += _of_secrets(case, came, servers.seen)
    if servers.held_too_long:
        found.append("the client waited for the end of a body that it was to hand on as it came")
    if servers.endless_sent > MAX_ENDLESS:
        found.append(f"of an endless body {servers.endless_sent} bytes were taken")
    if "connections" in case and case["connections"] != (
        number := len({seen.connection for seen in servers.seen})
    ):
        found.append(f"{number} connections, not {case['connections']}")
    return found


def _of_any_request(seen: Seen, servers: Servers) -> list[str]:
    """What RFC 9449 has of every request."""
    where = f"{seen.method} {seen.target} to {seen.to}"
    found = []
    authorizations = seen.values("authorization")
    bound = [each for each in authorizations if each.lower().startswith("dpop")]
    if len(seen.values("dpop")) > 1:
        found.append(f"{where}: several proofs")
    if len(authorizations) > 1:
        found.append(f"{where}: several Authorization headers")
    if seen.proof is None:
        return [*found, f"{where}: an access token without a proof"] if bound else found
    if seen.to not in LISTED:
        found.append(f"{where}: a proof for a server that isn't listed")
    claims = seen.proof.claims
    target = seen.target.partition("?")[0]
    htu = target if target.startswith("http") else f"http://{servers.hosts[seen.to]}{target}"
    wanted = {
        "htm": seen.method,
        "htu": htu,
        "ath": hashed(bound[0].partition(" ")[2]) if bound else None,
    }
    for name, value in wanted.items():
        if claims.get(name) != value:
            found.append(f"{where}: the proof's {name} is {claims.get(name)!r}, not {value!r}")
    return found


def _of_results(case: dict[str, Any], came: list[dict[str, Any]]) -> list[str]:
    wanted = [each for each in case["requests"] for _ in range(each.get("at_once", 1))]
    if len(wanted) != len(came):
        return [f"{len(came)} results of {len(wanted)} requests"]
    found = []
    for number, (request, got) in enumerate(zip(wanted, came, strict=True), 1):
        expected = request.get("result", {"status": 200})
        where = f"request {number}"
        errors = expected.get("error", [])
        errors = [errors] if isinstance(errors, str) else errors
        if "error" in got:
            if got["error"] not in errors:
                shown = got.get("shown", "")
                found.append(f"{where}: the error {got['error']!r}, not {expected}: {shown}")
            continue
        if "status" not in expected:
            found.append(f"{where}: status {got['status']}, not the error {errors}")
        elif got["status"] != expected["status"]:
            found.append(f"{where}: status {got['status']}, not {expected['status']}")
        if "body" in expected and got.get("body") != expected["body"]:
            found.append(f"{where}: the body {got.get('body')!r:.200}, not {expected['body']!r}")
        length = len(got.get("body", ""))
        if "body_length" in expected and length != expected["body_length"]:
            found.append(f"{where}: a body of {length}, not {expected['body_length']}")
    return found


def _of_wire(case: dict[str, Any], seen: list[Seen]) -> list[str]:
    found = []
    for count in case.get("counts", []):
        number = sum(not _differences(count["of"], each) for each in seen)
        if number != count["is"]:
            found.append(f"{number} requests are {count['of']}, not {count['is']}")
    if "wire" not in case:
        return found
    if len(seen) != len(case["wire"]):
        came = [f"{each.method} {each.target} to {each.to}" for each in seen]
        return [*found, f"{len(seen)} requests on the wire, not {len(case['wire'])}: {came}"]
    for number, (expected, each) in enumerate(zip(case["wire"], seen, strict=True), 1):
        found += [f"on the wire, {number}: {what}" for what in _differences(expected, each)]
    return found


def _differences(expected: dict[str, Any], seen: Seen) -> list[str]:
    got: dict[str, Any] = {
        "to": seen.to,
        "method": seen.method,
        "target": seen.target,
        "body": seen.body.decode("utf-8", "replace"),
        "authorization": next(iter(seen.values("authorization")), None),
        "cookies": {
            name: morsel.value
            for line in seen.values("cookie")
            for name, morsel in SimpleCookie(line).items()
        },
    }
    found = []
    for name, value in expected.items():
        if name == "proof":
            found += _proof_differences(value, seen.proof)
        elif name == "headers":
            found += [
                f"the header {header}: {seen.values(header)}, not {wanted}"
                for header, wanted in value.items()
                if seen.values(header) != ([] if wanted is None else [wanted])
            ]
        elif name == "body_has":
            if value not in got["body"]:
                found.append(f"body: {got['body']!r:.200} lacks {value!r}")
        elif got[name] != value:
            found.append(f"{name}: {got[name]!r:.200}, not {value!r}")
    return found


def _proof_differences(expected: dict[str, Any] | None, proof: ProofSeen | None) -> list[str]:
    if expected is None or proof is None:
        kind = ("none", "one")
        same = (expected is None) == (proof is None)
        return [] if same else [f"proof: {kind[proof is not None]}, not {kind[proof is None]}"]
    got = {"jkt": proof.jkt, "nonce": proof.claims.get("nonce"), "htu": proof.claims.get("htu")}
    return [
        f"the proof's {name}: {got[name]!r}, not {value!r}"
        for name, value in expected.items()
        if got[name] != value
    ]


def _of_secrets(case: dict[str, Any], came: list[dict[str, Any]], seen: list[Seen]) -> list[str]:
    """Secrets of a case reach listed servers alone, and no error shows them."""
    found = []
    for secret in case.get("secrets", []):
        for each in seen:
            text = f"{each.target} {each.headers} {each.body.decode('utf-8', 'replace')}"
            if each.to not in LISTED and secret in text:
                found.append(f"{secret!r} went to {each.to}")
        found += [f"an error shows {secret!r}" for got in came if secret in got.get("shown", "")]
    return found
