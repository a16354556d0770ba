"""Proofs as the agent gives them, judged by the project's verifier and by others' libraries."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import joserfc.jwk
import joserfc.jws
import jwt
import pytest

from dpop_agent.jose import ALGORITHMS, access_token_hash, b64url, b64url_decode, thumbprint
from dpop_agent.protocol import MAX_REQUESTS
from dpop_agent.verify import verify
from tests.agent.wire import Wire, refusal, request
from tests.processes import Agent, new_token
from tests.rows import Reached

ALGS = ("ES256", "ES384", "ES512", "RS256", "PS256", "EdDSA", "Ed25519")
HTM, HTU = "GET", "https://api.example.com/v1/me"
TARGET = {"htm": HTM, "htu": HTU}
UNKNOWN_JKT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with a key of every algorithm, by its name in lower case, and a few more."""
    folder = tmp_path_factory.mktemp("proofs")
    agent = Agent(new_token(folder / "token").config, folder / "state")
    with agent.serving("default"):
        for alg in ALGS:
            agent.create_key(alg.lower(), alg=alg, allow_sign_proof=True)
        agent.create_key("shop", origins=["https://shop.example", "http://keycloak:8080"])
        agent.create_key("own", origins=["https://shop.example"], allow_sign_proof=True)
        yield agent


@pytest.fixture
def wire(agent: Agent) -> Iterator[Wire]:
    with Wire(agent.socket) as wire:
        yield wire


@pytest.fixture
def fresh(request: pytest.FixtureRequest) -> str:
    """An origin that no other test uses."""
    return f"https://{b64url(request.node.name.encode()).lower().replace('_', '-')[-50:]}.example"


def claims(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(b64url_decode(result["proof"].split(".")[1]))
    return found


def header(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(b64url_decode(result["proof"].split(".")[0]))
    return found


class Registry(joserfc.jws.JWSRegistry):
    max_header_length = 2048  # a header with an RSA key has 450 bytes


def by_joserfc(text: str, jwk: dict[str, str], alg: str) -> Any:
    """The claims of a JWS that joserfc accepts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "EdDSA is deprecated via RFC 9864")
        return json.loads(
            joserfc.jws.deserialize_compact(
                text, joserfc.jwk.import_key(dict(jwk)), registry=Registry(algorithms=[alg])
            ).payload
        )


def jwk_of(wire: Wire, key: str) -> dict[str, str]:
    (listed,) = wire.result("key.list", key=key)["keys"]
    jwk: dict[str, str] = listed["generations"][0]["jwk"]
    return jwk


@pytest.mark.parametrize(
    "count", [5_000, pytest.param(1_000_000, marks=[pytest.mark.long, pytest.mark.row(16)])]
)
def test_each_proof_end_to_end_has_its_own_jti(agent: Agent, count: int, reached: Reached) -> None:
    batch = b"".join(request("proof", TARGET, number=n) for n in range(MAX_REQUESTS))
    seen = set[bytes]()
    asked = 0
    with ExitStack() as stack:
        wires = deque(stack.enter_context(Wire(agent.socket)) for _ in range(8))
        for wire in wires:
            wire.send(batch)
        while asked < count:
            wires.rotate()
            for answer in wires[0].lines(MAX_REQUESTS):
                jti = b64url_decode(claims(answer["result"])["jti"])
                assert len(jti) == 16
                seen.add(jti)
                asked += 1
            wires[0].send(batch)
        again = asked - len(seen)
    assert again == 0
    reached("proofs, end to end", asked)
    reached("proofs that have another's jti", again)


# The form


def test_every_algorithm_of_the_table_is_tested_here() -> None:
    assert set(ALGS) == set(ALGORITHMS)


@pytest.mark.parametrize("alg", ALGS)
def test_a_proof_of_every_algorithm_passes_the_twelve_checks(wire: Wire, alg: str) -> None:
    result = wire.result("proof", **TARGET, key=alg.lower(), nonce="n-1")
    found = verify(result["proof"], htm=HTM, htu=HTU, nonce="n-1", jkt=result["jkt"])
    assert found.alg == alg


@pytest.mark.parametrize("alg", ALGS)
def test_a_proof_of_every_algorithm_is_accepted_by_joserfc(wire: Wire, alg: str) -> None:
    result = wire.result("proof", **TARGET, key=alg.lower())
    jwk = jwk_of(wire, alg.lower())
    assert by_joserfc(result["proof"], jwk, alg) == claims(result)
    assert joserfc.jwk.import_key(dict(jwk)).thumbprint() == result["jkt"]


@pytest.mark.parametrize("alg", [a for a in ALGS if a != "Ed25519"])  # PyJWT knows EdDSA alone
def test_a_proof_of_every_algorithm_is_accepted_by_pyjwt(wire: Wire, alg: str) -> None:
    result = wire.result("proof", **TARGET, key=alg.lower())
    key = jwt.PyJWK(dict(header(result)["jwk"]), algorithm=alg)
    assert jwt.decode(result["proof"], key, algorithms=[alg]) == claims(result)


@pytest.mark.parametrize("alg", ALGS)
def test_a_proof_has_exactly_the_members_that_every_server_accepts(wire: Wire, alg: str) -> None:
    before = time.time()
    result = wire.result("proof", **TARGET, key=alg.lower(), nonce=None)
    after = time.time()
    assert result.keys() == {"proof", "key", "jkt", "state", "nonce"}
    assert (result["key"], result["state"], result["nonce"]) == (alg.lower(), "active", None)
    head = header(result)
    assert head == {"typ": "dpop+jwt", "alg": alg, "jwk": jwk_of(wire, alg.lower())}
    assert thumbprint(head["jwk"]) == result["jkt"]
    body = claims(result)
    assert body.keys() == {"jti", "htm", "htu", "iat"}
    assert (body["htm"], body["htu"]) == (HTM, HTU)
    assert type(body["iat"]) is int
    assert math.floor(before) <= body["iat"] <= after
    assert len(b64url_decode(body["jti"])) == 16
    assert "=" not in result["proof"]
    assert result["proof"].count(".") == 2


def test_ath_and_nonce_are_there_only_if_they_were_given(wire: Wire) -> None:
    ath = access_token_hash("an-access-token")
    body = claims(wire.result("proof", **TARGET, ath=ath, nonce="n-2"))
    assert body.keys() == {"jti", "htm", "htu", "iat", "ath", "nonce"}
    assert (body["ath"], body["nonce"]) == (ath, "n-2")


def test_htm_stays_verbatim_and_htu_loses_query_and_fragment(wire: Wire) -> None:
    asked = {"htm": "pAtCh", "htu": "HTTPS://API.Example.com:443/a%2Fb//c?q=1#f"}
    body = claims(wire.result("proof", **asked))
    assert (body["htm"], body["htu"]) == ("pAtCh", "https://api.example.com/a%2Fb//c")


def test_no_two_proofs_have_the_same_jti(wire: Wire) -> None:
    for _ in range(10):
        wire.send(b"".join(request("proof", TARGET, number=n) for n in range(50)))
        answers = wire.lines(50)
        assert len({claims(a["result"])["jti"] for a in answers}) == 50


def test_a_repeated_request_is_another_proof(wire: Wire) -> None:
    first, second = (wire.result("proof", **TARGET)["proof"] for _ in range(2))
    assert first != second


# Nonces


def test_a_nonce_that_was_observed_is_used_for_its_whole_origin_and_no_other(
    wire: Wire, fresh: str
) -> None:
    assert wire.result("proof", htm="GET", htu=f"{fresh}/a")["nonce"] is None
    wire.result("observe", seen=[{"htu": f"{fresh}:443/a?b", "nonce": "n-3"}])
    result = wire.result("proof", htm="POST", htu=f"{fresh}/other")
    assert result["nonce"] == claims(result)["nonce"] == "n-3"
    for other in (f"{fresh}:8443/a", fresh.replace("https://", "https://x.") + "/a"):
        result = wire.result("proof", htm="GET", htu=other)
        assert result["nonce"] is None
        assert "nonce" not in claims(result)


def test_one_clients_nonce_serves_all_clients(agent: Agent, wire: Wire, fresh: str) -> None:
    wire.result("observe", seen=[{"htu": fresh, "nonce": "n-4"}])
    with Wire(agent.socket) as other:
        assert other.result("proof", htm="GET", htu=fresh, key="es384")["nonce"] == "n-4"


def test_nonce_null_is_none_and_a_text_is_that_one_and_neither_is_remembered(
    wire: Wire, fresh: str
) -> None:
    wire.result("observe", seen=[{"htu": fresh, "nonce": "stored"}])
    asked = {"htm": "GET", "htu": fresh}
    without = wire.result("proof", **asked, nonce=None)
    assert without["nonce"] is None
    assert "nonce" not in claims(without)
    given = wire.result("proof", **asked, nonce="given")
    assert given["nonce"] == claims(given)["nonce"] == "given"
    assert wire.result("proof", **asked)["nonce"] == "stored"


def test_seen_counts_for_the_proof_that_it_came_with_the_last_word_last(
    wire: Wire, fresh: str
) -> None:
    seen = [{"htu": fresh, "nonce": "old"}, {"htu": fresh, "nonce": "new"}]
    assert wire.result("proof", htm="GET", htu=fresh, seen=seen)["nonce"] == "new"
    assert wire.result("proof", htm="GET", htu=fresh)["nonce"] == "new"


def test_every_character_of_the_nonce_grammar_is_taken(wire: Wire) -> None:
    nonce = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"\\')
    result = wire.result("proof", **TARGET, nonce=nonce)
    assert claims(result)["nonce"] == nonce
    verify(result["proof"], htm=HTM, htu=HTU, nonce=nonce)


# The servers' clocks


@pytest.mark.parametrize(
    ("ahead_s", "moves_s"),
    [(-100, -100), (-299, -299), (-301, 0), (-100_000, 0), (100, 0), (5, 0), (-1, 0), (0, 0)],
)
def test_a_servers_date_moves_iat_back_by_300_seconds_at_most_and_never_forward(
    wire: Wire, fresh: str, ahead_s: int, moves_s: int
) -> None:
    time.sleep(1 - time.time() % 1)  # a date has whole seconds: at the start of one it loses none
    date = datetime.fromtimestamp(time.time() + ahead_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    wire.result("observe", seen=[{"htu": fresh, "date": date}])
    before = time.time()
    iat = claims(wire.result("proof", htm="GET", htu=fresh))["iat"]
    assert before + moves_s - 2 < iat <= time.time() + moves_s
    if not moves_s:
        assert iat >= math.floor(before)
    assert claims(wire.result("proof", htm="GET", htu=f"{fresh}:444/"))["iat"] >= math.floor(before)
    (told,) = [o for o in wire.result("status")["origins"] if o["origin"] == fresh]
    assert abs(told["clock_offset_s"] - ahead_s) <= 1


def test_status_tells_what_is_known_of_a_server_but_not_its_nonce(wire: Wire, fresh: str) -> None:
    wire.result("observe", seen=[{"htu": fresh, "nonce": "canary-nonce"}])
    status = wire.result("status")
    (told,) = [o for o in status["origins"] if o["origin"] == fresh]
    assert told["nonce_age_s"] in (0, 1)
    assert told["clock_offset_s"] is None
    assert told["iat_refused_age_s"] is None
    assert "canary-nonce" not in json.dumps(status)


def test_a_refused_nonce_is_forgotten_and_a_refused_iat_told(wire: Wire, fresh: str) -> None:
    wire.result("observe", seen=[{"htu": fresh, "nonce": "stale"}])
    wire.result("observe", seen=[{"htu": fresh, "refused_nonce": "other", "iat_refused": True}])
    assert wire.result("proof", htm="GET", htu=fresh)["nonce"] == "stale"
    wire.result("observe", seen=[{"htu": fresh, "refused_nonce": "stale"}])
    assert wire.result("proof", htm="GET", htu=fresh)["nonce"] is None
    (told,) = [o for o in wire.result("status")["origins"] if o["origin"] == fresh]
    assert told["iat_refused_age_s"] in (0, 1)


@pytest.mark.parametrize(
    "wrong", [{"refused_nonce": 'a"b'}, {"refused_nonce": None}, {"iat_refused": 1}, {"iat": 1}]
)
def test_what_a_server_said_has_its_checked_form(
    wire: Wire, fresh: str, wrong: dict[str, object]
) -> None:
    assert wire.error("observe", seen=[{"htu": fresh, **wrong}])["type"] == "invalid_params"


# Which key


def test_the_key_by_jkt_is_the_key_by_name(wire: Wire) -> None:
    jkt = wire.result("proof", **TARGET, key="es384")["jkt"]
    for how in ({"jkt": jkt}, {"jkt": jkt, "key": "es384"}):
        result = wire.result("proof", **TARGET, **how)
        assert (result["key"], result["jkt"]) == ("es384", jkt)
        verify(result["proof"], htm=HTM, htu=HTU, jkt=jkt)


def test_a_request_without_a_key_gets_the_default_one(wire: Wire) -> None:
    assert wire.result("proof", **TARGET)["key"] == "default"


def test_no_other_key_stands_in_for_the_one_that_was_asked_for(wire: Wire) -> None:
    jkt = wire.result("proof", **TARGET)["jkt"]
    assert wire.error("proof", **TARGET, key="nobody")["type"] == "key_unknown"
    assert wire.error("proof", **TARGET, jkt=UNKNOWN_JKT)["type"] == "key_unknown"
    error = wire.error("proof", **TARGET, jkt=UNKNOWN_JKT, key="default")
    assert error["type"] == "key_unknown"
    assert wire.error("proof", **TARGET, key="es256", jkt=jkt)["type"] == "key_mismatch"
    assert wire.error("proof", **TARGET, key="nobody", jkt=jkt)["type"] == "key_mismatch"


# Policy


@pytest.mark.parametrize(
    "htu",
    [
        "https://shop.example/cart",
        "https://SHOP.example:443/cart?x",
        "http://keycloak:8080/realms/a/token",
    ],
)
def test_a_key_signs_for_its_origins(wire: Wire, htu: str) -> None:
    assert wire.result("proof", htm="GET", htu=htu, key="shop")["key"] == "shop"


@pytest.mark.parametrize(
    ("htu", "kind"),
    [
        ("https://shop.example:8443/", "policy_refused"),
        ("https://www.shop.example/", "policy_refused"),
        ("https://shop.example.evil.example/", "policy_refused"),
        ("https://evil.example/?https://shop.example", "policy_refused"),
        ("https://evil.example#@shop.example/", "policy_refused"),
        ("https://keycloak:8080/", "policy_refused"),
        ("http://127.0.0.1:9/", "policy_refused"),
        ("http://keycloak/", "htu_refused"),
        ("http://keycloak:8081/", "htu_refused"),
        ("http://shop.example/", "htu_refused"),
    ],
)
def test_a_key_signs_for_no_other_origin(wire: Wire, htu: str, kind: str) -> None:
    proofs = wire.result("status")["proofs"]
    error = wire.error("proof", htm="GET", htu=htu, key="shop")
    assert (error["type"], error["retry"]) == (kind, "no")
    assert wire.result("status")["proofs"] == proofs


@pytest.mark.parametrize("host", ["127.0.0.1:80", "127.9.9.9:8080", "localhost:3000", "[::1]:3000"])
def test_a_key_without_origins_signs_for_loopback_in_clear(wire: Wire, host: str) -> None:
    assert wire.result("proof", htm="GET", htu=f"http://{host}/cb")["state"] == "active"


def test_a_key_without_origins_signs_for_nobody_else_in_clear(wire: Wire) -> None:
    error = wire.error("proof", htm="GET", htu="http://keycloak:8080/")
    assert error["type"] == "htu_refused"
    assert "--origin http://keycloak:8080" in error["hint"]


def test_origins_are_changed_by_key_set_and_kept_over_a_restart(
    make_agent: Callable[..., Agent],
) -> None:
    agent = make_agent().start()
    agent.create_key("k")
    asked = {"htm": "GET", "htu": "https://b.example/", "key": "k"}
    origins = ["https://A.example:443", "https://a.example", "http://as:8080"]
    with Wire(agent.socket) as wire, Wire(agent.admin_socket) as admin:
        assert "proof" in wire.result("proof", **asked)
        (changed,) = admin.result("key.set", key="k", origins=origins)["keys"]
        assert changed["origins"] == ["https://a.example", "http://as:8080"]
        assert wire.error("proof", **asked)["type"] == "policy_refused"
    agent.stop()
    agent.start()
    with Wire(agent.socket) as wire, Wire(agent.admin_socket) as admin:
        assert wire.error("proof", **asked)["type"] == "policy_refused"
        assert wire.error("proof.sign", signing_input="a.b", jkt=_jkt(wire, "k"))["type"] == (
            "policy_refused"
        )
        (changed,) = admin.result("key.set", key="k", allow_sign_proof=True)["keys"]
        assert changed["origins"] == ["https://a.example", "http://as:8080"]
        admin.result("key.set", key="k", origins=[])
        assert "proof" in wire.result("proof", **asked)


def _jkt(wire: Wire, key: str) -> str:
    (listed,) = wire.result("key.list", key=key)["keys"]
    jkt: str = listed["generations"][0]["jkt"]
    return jkt


# proof.sign


def part(value: Any) -> str:
    return b64url(json.dumps(value).encode())


def built(wire: Wire, key: str, **claims: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims as a client's library would build them."""
    (listed,) = wire.result("key.list", key=key)["keys"]
    head = {"typ": "dpop+jwt", "alg": listed["alg"], "jwk": listed["generations"][0]["jwk"]}
    body = {"jti": "0123456789abcdef", "htm": HTM, "htu": HTU, "iat": int(time.time())}
    return head, {name: v for name, v in (body | claims).items() if v is not ...}


@pytest.mark.parametrize("alg", ALGS)
@pytest.mark.parametrize("more", [{}, {"ath": UNKNOWN_JKT, "nonce": "n"}, {"jti": "x" * 64}])
def test_a_proof_that_a_client_built_is_signed_as_it_is(
    wire: Wire, alg: str, more: dict[str, Any]
) -> None:
    head, body = built(wire, alg.lower(), **more)
    text = f"{part(head)}.{part(body)}"
    result = wire.result("proof.sign", signing_input=text, jkt=thumbprint(head["jwk"]))
    assert result.keys() == {"signature"}
    assert by_joserfc(f"{text}.{result['signature']}", head["jwk"], alg) == body
    verify(f"{text}.{result['signature']}", htm=HTM, htu=HTU)


def test_a_proof_up_to_5_seconds_old_is_signed(wire: Wire) -> None:
    head, body = built(wire, "es256", iat=int(time.time()) - 4)
    text = f"{part(head)}.{part(body)}"
    assert wire.result("proof.sign", signing_input=text, jkt=thumbprint(head["jwk"]))


def test_a_key_that_wasnt_given_leave_signs_nothing_that_a_client_built(wire: Wire) -> None:
    head, body = built(wire, "default")
    text = f"{part(head)}.{part(body)}"
    error = wire.error("proof.sign", signing_input=text, jkt=thumbprint(head["jwk"]))
    assert error["type"] == "policy_refused"
    assert "--allow-sign-proof" in error["hint"]


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ({"typ": "JWT"}, "invalid_params"),
        ({"typ": "DPOP+JWT"}, "invalid_params"),
        ({"typ": ...}, "invalid_params"),
        ({"alg": "ES384"}, "invalid_params"),
        ({"alg": "none"}, "invalid_params"),
        ({"alg": ...}, "invalid_params"),
        ({"jwk": ...}, "invalid_params"),
        ({"jwk": {}}, "invalid_params"),
        ({"kid": "1"}, "invalid_params"),
        ({"crit": ["exp"]}, "invalid_params"),
        ({"b64": False}, "invalid_params"),
    ],
)
def test_another_header_than_a_proofs_is_not_signed(
    wire: Wire, head: dict[str, Any], kind: str
) -> None:
    good, body = built(wire, "es256")
    jkt = thumbprint(good["jwk"])
    bad = {name: v for name, v in (good | head).items() if v is not ...}
    error = wire.error("proof.sign", signing_input=f"{part(bad)}.{part(body)}", jkt=jkt)
    assert error["type"] == kind


def test_another_keys_jwk_or_a_jwk_with_more_is_not_signed(wire: Wire) -> None:
    good, body = built(wire, "es256")
    other, _ = built(wire, "default")
    jkt = thumbprint(good["jwk"])
    for jwk in (other["jwk"], good["jwk"] | {"kid": "1"}, good["jwk"] | {"d": "AAAA"}):
        text = f"{part(good | {'jwk': jwk})}.{part(body)}"
        assert wire.error("proof.sign", signing_input=text, jkt=jkt)["type"] == "invalid_params"
    text = f"{part(good)}.{part(body)}"
    for wrong in (thumbprint(other["jwk"]), UNKNOWN_JKT):
        kind = wire.error("proof.sign", signing_input=text, jkt=wrong)["type"]
        assert kind in ("policy_refused", "key_unknown")


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        *[({name: ...}, "invalid_params") for name in ("jti", "htm", "htu", "iat")],
        *[({name: 1}, "invalid_params") for name in ("exp", "nbf", "iss", "sub", "aud", "scope")],
        ({"jti": "x" * 15}, "invalid_params"),
        ({"jti": "x" * 65}, "invalid_params"),
        *[
            ({"jti": f"0123456789{odd}abcdef"}, "invalid_params")
            for odd in (" ", "\n", "\r\n", "\0", "\x7f", "ä", "\u2028", "\ud800")
        ],
        ({"jti": 1234567890123456}, "invalid_params"),
        ({"htm": ""}, "invalid_params"),
        ({"htm": "GET /"}, "invalid_params"),
        ({"htm": 1}, "invalid_params"),
        ({"ath": "short"}, "invalid_params"),
        ({"ath": None}, "invalid_params"),
        ({"nonce": "a b"}, "invalid_params"),
        ({"nonce": None}, "invalid_params"),
        ({"htu": "https://api.example.com"}, "htu_refused"),
        ({"htu": "https://api.example.com/?q"}, "htu_refused"),
        ({"htu": "https://api.example.com/#f"}, "htu_refused"),
        ({"htu": "https://API.example.com/"}, "htu_refused"),
        ({"htu": "https://api.example.com:443/"}, "htu_refused"),
        ({"htu": "https://api.example.com/a/../b"}, "htu_refused"),
        ({"htu": "http://api.example.com/"}, "htu_refused"),
        ({"htu": 1}, "htu_refused"),
    ],
)
def test_other_claims_than_a_proofs_are_not_signed(
    wire: Wire, wrong: dict[str, Any], kind: str
) -> None:
    head, body = built(wire, "es256", **wrong)
    text = f"{part(head)}.{part(body)}"
    error = wire.error("proof.sign", signing_input=text, jkt=thumbprint(head["jwk"]))
    assert (error["type"], error["retry"]) == (kind, "no")


@pytest.mark.parametrize("shift", [+2, +3600, -7, -3600])
def test_an_iat_that_isnt_now_is_not_signed(wire: Wire, shift: int) -> None:
    head, body = built(wire, "es256", iat=int(time.time()) + shift)
    text = f"{part(head)}.{part(body)}"
    error = wire.error("proof.sign", signing_input=text, jkt=thumbprint(head["jwk"]))
    assert error["type"] == "invalid_params"


@pytest.mark.parametrize("kind", [float, str, bool, lambda now: [now]])
def test_an_iat_that_is_no_integer_is_not_signed(wire: Wire, kind: Callable[[int], Any]) -> None:
    head, body = built(wire, "es256", iat=kind(int(time.time())))
    text = f"{part(head)}.{part(body)}"
    error = wire.error("proof.sign", signing_input=text, jkt=thumbprint(head["jwk"]))
    assert error["type"] == "invalid_params"


def test_what_isnt_two_parts_of_strict_base64url_json_is_not_signed(wire: Wire) -> None:
    head, body = built(wire, "es256")
    jkt, good_head, good_body = thumbprint(head["jwk"]), part(head), part(body)
    twice = json.dumps(body)[:-1] + ',"htu":"https://evil.example/"}'
    for text in (
        "hello",
        ".",
        f"{good_head}",
        f"{good_head}.",
        f".{good_body}",
        f"{good_head}.{good_body}.",
        f"{good_head}.{good_body}.AAAA",
        f"{good_head}=.{good_body}",
        f"{good_head}.{good_body}\n",
        f"{good_head}.{b64url(twice.encode())}",
        f"{good_head}.{b64url(b'[]')}",
        f"{good_head}.{b64url(json.dumps(body).encode() + b' x')}",
        f"{good_head}.{b64url(json.dumps(body).encode('utf-16'))}",
        f"{good_body}.{good_head}",
    ):
        assert wire.error("proof.sign", signing_input=text, jkt=jkt)["type"] == "invalid_params"


def test_proof_sign_keeps_to_the_keys_origins(wire: Wire) -> None:
    head, body = built(wire, "own", htu="https://shop.example/pay")
    jkt = thumbprint(head["jwk"])
    wire.result("proof.sign", signing_input=f"{part(head)}.{part(body)}", jkt=jkt)
    body["htu"] = HTU
    error = wire.error("proof.sign", signing_input=f"{part(head)}.{part(body)}", jkt=jkt)
    assert error["type"] == "policy_refused"


def test_a_refused_signing_input_is_not_repeated_in_the_answer(wire: Wire) -> None:
    head, body = built(wire, "es256", exp=1)
    text = f"{part(head)}.{part(body)}"
    wire.send(request("proof.sign", {"signing_input": text, "jkt": thumbprint(head["jwk"])}))
    answer = wire.next()
    refusal(answer)
    assert text not in json.dumps(answer)
