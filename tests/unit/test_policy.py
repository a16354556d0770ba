"""What a key may be used for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dpop_agent.agent.keys import Key
from dpop_agent.agent.policy import rate_exceeded, require_allowed, socket_rate_exceeded
from dpop_agent.agent.rules import ANYTHING, Rate
from dpop_agent.errors import HtuRefused, PolicyRefused
from dpop_agent.htu import Target, target

AT = "2026-11-20T19:05:00Z"


def key(*origins: str, **rules: Any) -> Key:
    given = ANYTHING.given({"origins": list(origins), **rules})
    return Key("shop", "soft", "ES256", AT, given)


def require(key: Key, target: Target, htm: str = "GET", *, ath: bool = False) -> None:
    require_allowed(key, target, htm, presents_access_token=ath)


@pytest.mark.parametrize(
    "uri",
    [
        "https://anything.example/a?b",
        "https://10.0.0.1:8443/",
        "http://localhost:3000/cb",
        "http://127.0.0.1/",
        "http://127.255.0.9:81/",
        "http://[::1]:8080/",
    ],
)
def test_a_key_without_origins_is_for_any_https_and_for_loopback(uri: str) -> None:
    require(key(), target(uri))


@pytest.mark.parametrize(
    "uri", ["http://keycloak:8080/", "http://10.0.0.1/", "http://localhost.example/", "http://h/"]
)
def test_cleartext_to_another_host_takes_that_very_origin(uri: str) -> None:
    origin = target(uri).origin
    with pytest.raises(HtuRefused, match="is cleartext http") as refused:
        require(key(), target(uri))
    assert refused.value.hint.endswith(f"dpop-agent key create NAME --origin {origin}")
    secure = origin.replace("http:", "https:")
    with pytest.raises(HtuRefused) as refused:
        require(key(secure), target(uri))
    assert refused.value.hint.endswith(f"key set shop --origin {secure} --origin {origin}")
    require(key("https://other.example", origin), target(uri))


@pytest.mark.parametrize(
    "uri", ["https://a.example/", "https://A.EXAMPLE:443/x?y", "https://b.example:8443/"]
)
def test_a_key_with_origins_is_for_these(uri: str) -> None:
    require(key("https://a.example", "https://b.example:8443"), target(uri))


@pytest.mark.parametrize(
    "uri",
    [
        "https://a.example:8443/",
        "https://b.example/",
        "https://sub.a.example/",
        "https://a.example.evil.example/",
        "https://evil.example/https://a.example/",
        "http://localhost/",
    ],
)
def test_a_key_with_origins_is_for_no_other(uri: str) -> None:
    with pytest.raises(PolicyRefused) as refused:
        require(key("https://a.example", "https://b.example:8443"), target(uri))
    assert refused.value.message == (
        f"the key shop isn't for {target(uri).origin}, only for "
        "https://a.example, https://b.example:8443"
    )
    assert refused.value.hint.endswith(
        "key set shop --origin https://a.example --origin https://b.example:8443 "
        f"--origin {target(uri).origin}"
    )


def test_a_refusal_names_eight_origins_at_most() -> None:
    many = [f"https://s{n}.example" for n in range(64)]
    with pytest.raises(PolicyRefused) as refused:
        require(key(*many), target("https://other.example/"))
    assert refused.value.message.endswith(", ".join(many[:8]))
    assert len(refused.value.hint) < 300


def test_a_key_whose_policy_is_lost_is_for_nothing() -> None:
    lost = replace(key("https://a.example"), policy_lost=True)
    for uri in ("https://a.example/", "https://b.example/", "http://localhost/"):
        with pytest.raises(PolicyRefused, match="was lost with its ledger") as refused:
            require(lost, target(uri))
        assert "dpop-agent key set shop --origin" in refused.value.hint


@pytest.mark.parametrize(
    ("rules", "says", "hint"),
    [
        (
            {"methods": ["GET", "HEAD"]},
            "the key shop isn't for the method POST, only for GET, HEAD",
            "allow it too: dpop-agent key set shop --method GET --method HEAD --method POST",
        ),
        (
            {"paths": ["/v2", "/me"]},
            "the key shop isn't for that path, only for those below /v2, /me",
            "allow it too: dpop-agent key set shop --path /v2 --path /me --path PATH",
        ),
        (
            {"paths": ["/v1"]},
            "the key shop is for some paths alone, and this one could be read as another: it has "
            "an empty segment, . or .., or an encoded slash, backslash, ? or #",
            "give the path without these",
        ),
        (
            {"require_ath": True},
            "the key shop is for requests with an access token alone, and this has no ath",
            "send ath with the request that presents the access token",
        ),
    ],
)
def test_a_refusal_says_which_rule_and_what_to_do(
    rules: dict[str, Any], says: str, hint: str
) -> None:
    with pytest.raises(PolicyRefused) as refused:
        require(key(**rules), target("https://a.example/v1/..;/x"), "POST")
    assert refused.value.message == says
    assert hint in refused.value.hint
    (name,) = rules
    assert refused.value.to_wire()["data"]["rule"] == name


def test_each_rule_is_asked_and_the_first_that_refuses_is_named() -> None:
    all_of_them = key(
        "https://a.example", methods=["GET"], paths=["/v1"], require_ath=True, confirm_s=0
    )
    require(all_of_them, target("https://a.example/v1/x"), ath=True)
    for uri, htm, ath, rule in (
        ("https://b.example/v2", "PUT", False, "origins"),
        ("https://a.example/v2", "PUT", False, "methods"),
        ("https://a.example/v2", "GET", False, "paths"),
        ("https://a.example/v1", "GET", False, "require_ath"),
    ):
        with pytest.raises(PolicyRefused) as refused:
            require(all_of_them, target(uri), htm, ath=ath)
        assert refused.value.details == {"rule": rule}


def test_a_rate_that_is_used_up_says_when_the_next_proof_is_to_be_had() -> None:
    refused = rate_exceeded(key("https://a.example"), Rate(60, 10), 0.2)
    assert refused.message == (
        "the key shop has given all that its rate allows for now: at most 60 a minute and 10 at "
        "once"
    )
    assert refused.hint == ("ask again in 1 s, or allow more: dpop-agent key set shop --rate N/min")
    assert refused.retry_after_ms == 200
    assert socket_rate_exceeded(Rate(1, 1), 59.1).hint == "ask again in 60 s"
