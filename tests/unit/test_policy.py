"""What a key may be used for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dpop_agent.agent.keys import Key
from dpop_agent.agent.policy import require_allowed
from dpop_agent.errors import HtuRefused, PolicyRefused
from dpop_agent.htu import origin_of, target


def key(*origins: str) -> Key:
    return Key("shop", "soft", "ES256", "2026-11-20T19:05:00Z", tuple(map(origin_of, origins)))


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
    require_allowed(key(), target(uri))


@pytest.mark.parametrize(
    "uri", ["http://keycloak:8080/", "http://10.0.0.1/", "http://localhost.example/", "http://h/"]
)
def test_cleartext_to_another_host_takes_that_very_origin(uri: str) -> None:
    origin = target(uri).origin
    with pytest.raises(HtuRefused, match="is cleartext http") as refused:
        require_allowed(key(), target(uri))
    assert refused.value.hint.endswith(f"dpop-agent key create NAME --origin {origin}")
    secure = origin.replace("http:", "https:")
    with pytest.raises(HtuRefused) as refused:
        require_allowed(key(secure), target(uri))
    assert refused.value.hint.endswith(f"key set shop --origin {secure} --origin {origin}")
    require_allowed(key("https://other.example", origin), target(uri))


@pytest.mark.parametrize(
    "uri", ["https://a.example/", "https://A.EXAMPLE:443/x?y", "https://b.example:8443/"]
)
def test_a_key_with_origins_is_for_these(uri: str) -> None:
    require_allowed(key("https://a.example", "https://b.example:8443"), target(uri))


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
        require_allowed(key("https://a.example", "https://b.example:8443"), target(uri))
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
        require_allowed(key(*many), target("https://other.example/"))
    assert refused.value.message.endswith(", ".join(many[:8]))
    assert len(refused.value.hint) < 300


def test_a_key_whose_policy_is_lost_is_for_nothing() -> None:
    lost = replace(key("https://a.example"), policy_lost=True)
    for uri in ("https://a.example/", "https://b.example/", "http://localhost/"):
        with pytest.raises(PolicyRefused, match="was lost with its ledger") as refused:
            require_allowed(lost, target(uri))
        assert "dpop-agent key set shop --origin" in refused.value.hint
