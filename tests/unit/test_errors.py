from __future__ import annotations

import json

import pytest

from dpop_agent import errors
from dpop_agent.client import AgentClient
from dpop_agent.errors import ConfigurationError, DPoPAgentError, from_wire
from dpop_agent.hardening import text_of


def below(cls: type[DPoPAgentError]) -> list[type[DPoPAgentError]]:
    # Other modules' own subclasses aren't on the wire.
    found = [c for c in cls.__subclasses__() if c.__module__ == errors.__name__]
    return [cls, *(c for child in found for c in below(child))]


CLASSES = below(DPoPAgentError)
# Raised where a check is made, with arguments of their own.
LOCAL = (errors.InvalidProof, errors.NonceRequired)
ON_THE_WIRE = [cls for cls in CLASSES if cls not in LOCAL]


def test_every_class_has_its_own_stable_type() -> None:
    types = [cls.wire_type for cls in CLASSES]
    assert len(set(types)) == len(types)
    assert all(name == name.lower() and name.replace("_", "").isalpha() for name in types)


def test_the_types_that_programs_compare_are_these() -> None:
    assert {cls.wire_type for cls in CLASSES} >= {
        "jkt_required",
        "key_mismatch",
        "key_unknown",
        "key_pending",
        "key_staged",
        "key_suspended",
        "key_compromised",
        "key_retired",
        "key_destroyed",
        "key_missing",
        "no_active",
        "htu_refused",
        "policy_refused",
        "locked",
        "store_absent",
        "signer_failed",
        "timeout",
        "cancelled",
        "busy",
        "too_many_connections",
    }


@pytest.mark.parametrize("cls", ON_THE_WIRE)
def test_an_error_survives_the_wire(cls: type[DPoPAgentError]) -> None:
    sent = cls(
        "what and why", hint="do this", retry="later", retry_after_ms=250, details={"choices": [1]}
    )
    came = from_wire(json.loads(json.dumps(sent.to_wire())))
    assert type(came) is cls
    assert (came.message, came.hint, came.retry) == ("what and why", "do this", "later")
    assert (came.retry_after_ms, came.details) == (250, {"choices": [1]})
    assert came.type == cls.wire_type
    assert came.to_wire() == sent.to_wire()


@pytest.mark.parametrize("cls", ON_THE_WIRE)
def test_the_defaults_of_a_class_survive_the_wire(cls: type[DPoPAgentError]) -> None:
    sent = cls("what and why")
    came = from_wire(json.loads(json.dumps(sent.to_wire())))
    assert (came.hint, came.retry) == (cls.default_hint, cls.default_retry)
    assert came.retry_after_ms is None
    assert str(came) == str(sent)


@pytest.mark.parametrize(
    "sent",
    [errors.InvalidProof(9, "htu is another"), errors.NonceRequired("again", nonce="n")],
    ids=["InvalidProof", "NonceRequired"],
)
def test_an_error_of_the_checking_side_keeps_its_type_and_words(sent: DPoPAgentError) -> None:
    came = from_wire(json.loads(json.dumps(sent.to_wire())))
    assert (came.type, came.message, came.hint) == (sent.wire_type, sent.message, sent.hint)


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (errors.ParseError, -32700),
        (errors.InvalidRequest, -32600),
        (errors.MethodNotFound, -32601),
        (errors.InvalidParams, -32602),
        (errors.ProtocolError, -32603),
        (errors.KeyUnknown, -32000),
        (errors.Locked, -32000),
    ],
)
def test_codes_are_those_of_json_rpc_and_one_of_ours(cls: type[DPoPAgentError], code: int) -> None:
    assert cls("x").to_wire()["code"] == code


def test_a_type_of_a_newer_agent_is_kept() -> None:
    came = from_wire({"code": -32000, "message": "m", "data": {"type": "brand_new", "hint": "h"}})
    assert type(came) is DPoPAgentError
    assert (came.type, str(came), came.retry) == ("brand_new", "m; h", "no")


@pytest.mark.parametrize(
    "error",
    [
        None,
        [],
        "x",
        1,
        {},
        {"message": None},
        {"message": ["x"], "data": []},
        {"message": "m", "data": {"type": 1, "hint": 2, "retry": 3, "retry_after_ms": "4"}},
        {"message": "m", "data": {"type": [], "hint": {}, "retry": [], "retry_after_ms": None}},
        {"message": "m", "data": {"type": "invalid_proof"}},
        {"message": "m", "data": {"type": "nonce_required"}},
    ],
)
def test_an_error_of_any_shape_becomes_an_exception_with_one_line(error: object) -> None:
    came = from_wire(error)
    assert isinstance(came, DPoPAgentError)
    assert str(came)
    assert "\n" not in str(came)
    assert came.type not in ("None", "")
    assert came.retry in ("no", "now", "later")
    assert came.retry_after_ms is None


def test_a_failed_check_says_its_number() -> None:
    failed = errors.InvalidProof(4, "typ isn't dpop+jwt")
    assert failed.check == 4
    assert str(failed) == "check 4 of RFC 9449 section 4.3 failed: typ isn't dpop+jwt"


def test_a_hint_follows_the_message() -> None:
    assert str(errors.KeyUnknown("no key 'a'")) == "no key 'a'; see: dpop-agent key list"
    assert str(errors.KeyUnknown("no key 'a'", hint="")) == "no key 'a'"


def test_a_nonce_for_a_body_that_cannot_be_sent_again_is_carried_but_not_shown() -> None:
    error = errors.NonceRequired("the body can't be sent again", nonce="canary-nonce")
    assert error.nonce == "canary-nonce"
    assert "canary-nonce" not in f"{error} {error!r} {error.to_wire()}"


def chained(error: BaseException | None) -> list[BaseException]:
    """An exception and all that hang on it, shown in a traceback or not."""
    found: list[BaseException] = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


@pytest.mark.parametrize("odd", ["geheim-\u00e4", "geheim-\ud800"])
def test_no_exception_on_the_way_holds_an_access_token(odd: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AgentClient("/none/agent.sock").proof("GET", "https://api.example.com/", access_token=odd)
    for error in chained(caught.value):
        assert "geheim" not in repr(error.args)
        assert "geheim" not in repr(vars(error))
        assert not isinstance(error, UnicodeError)


def test_a_secret_that_is_no_text_leaves_no_exception_behind() -> None:
    assert text_of(b"geheim") == "geheim"
    assert text_of(b"geheim\xff") is None
