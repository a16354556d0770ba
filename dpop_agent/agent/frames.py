"""What a signer may answer, operation by operation. Pure.

A signer's memory has a vendor's module in it, so what it says is checked as if it came from there:
each member's type and form, a thumbprint against its key, a signature's alphabet and length. A
frame that doesn't fit is a dead signer's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from dpop_agent.agent.keys import PROTECTIONS, TOUCHES
from dpop_agent.channel import Malformed, Signed
from dpop_agent.errors import DPoPAgentError, from_wire
from dpop_agent.jose import (
    ALGORITHMS,
    RSA_BITS_TAKEN,
    b64url_decode,
    is_public_jwk,
    is_sha256,
    rsa_bits,
    signature_size,
    thumbprint,
)
from dpop_agent.protocol import REF, SLOT

Form = Callable[[Any], bool]

Outcome = dict[str, Any] | bytes | DPoPAgentError
"""What became of a frame: an operation's result, a signature, or the error to raise."""

MAX_RETRY_AFTER_MS = 3_600_000
"""The longest pause that a signer may ask for; `login_retries` asks for minutes."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_like(pattern: re.Pattern[str]) -> Form:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _or_none(form: Form) -> Form:
    return lambda value: value is None or form(value)


def _list_of(form: Form) -> Form:
    return lambda value: isinstance(value, list) and all(map(form, value))


def _object(*, may: Mapping[str, Form] | None = None, **must: Form) -> Form:
    forms = {**must, **(may or {})}

    def fits(value: Any) -> bool:
        return (
            isinstance(value, dict)
            and must.keys() <= value.keys() <= forms.keys()
            and all(forms[name](member) for name, member in value.items())
        )

    return fits


def _is_jwk(value: Any) -> bool:
    if not any(is_public_jwk(value, alg) for alg in ALGORITHMS.values()):
        return False
    if value["kty"] != "RSA":
        return True
    return rsa_bits(value) in RSA_BITS_TAKEN and 0 < _size(value["e"]) <= _size(value["n"])


def _size(text: str) -> int:
    """Bytes that it is the base64url of; 0 if it isn't."""
    try:
        return len(b64url_decode(text))
    except ValueError:
        return 0


_is_ref = _is_like(REF)
_has_the_members_of_a_key = _object(
    ref=_is_ref,
    jwk=_is_jwk,
    jkt=is_sha256,
    exportable=_is_bool,
    protection=lambda value: value in PROTECTIONS,
    local=_or_none(_is_bool),
    slot=_or_none(_is_like(SLOT)),
    touch=_or_none(lambda value: value in TOUCHES),
)


def _is_key(value: Any) -> bool:
    return _has_the_members_of_a_key(value) and bool(thumbprint(value["jwk"]) == value["jkt"])


FORMS: Mapping[str, Form] = {
    "listen": _object(path=_or_none(_is_text), pad=_is_bool),
    "open": _object(
        label=_or_none(_is_text),
        serial=_or_none(_is_text),
        model=_or_none(_is_text),
        pid=_is_count,
    ),
    "tell": _object(),
    "release": _object(),
    "hand_on": _object(),
    "look_anew": _object(),
    "authorize": _object(path=_or_none(_is_text)),
    "reserve": _object(ref=_is_ref, slot=_or_none(_is_like(SLOT))),
    "generate": _is_key,
    "find": _object(key=_or_none(_is_key), half=_or_none(is_sha256)),
    "self_test": _object(outcome=lambda value: value in ("signed", "attended", "stale")),
    "destroy": _object(),
    "objects": _object(
        objects=_or_none(
            _list_of(
                _object(
                    ref=lambda value: value == "" or _is_ref(value),  # a stranger's may have none
                    label=_is_text,
                    jkt=_or_none(is_sha256),
                    alg=_or_none(lambda value: isinstance(value, str) and value in ALGORITHMS),
                )
            )
        ),
        more=_is_bool,
        slots=_or_none(_object(total=_is_count, free=_is_count)),
    ),
    "attestation": _object(certificates=_list_of(_is_text)),
}
"""The form of each operation's result, a key being one for any algorithm."""


def is_some_signature(value: Any) -> bool:
    """Whether it could be a signature by any key."""
    return isinstance(value, bytes) and bool(value)


def result_form(request: Mapping[str, Any] | bytes) -> Form:
    """The form of what answers a request: a key is one for the algorithm that was asked for."""
    if isinstance(request, bytes):
        return is_some_signature
    form = FORMS[request["op"]]
    if request["op"] not in ("generate", "find"):
        return form
    alg = ALGORITHMS[request["alg"]]

    def fits(value: Any) -> bool:
        if not form(value):
            return False
        key = value["key"] if request["op"] == "find" else value
        return key is None or is_public_jwk(key["jwk"], alg)

    return fits


def signature_form(alg: str, jwk: Mapping[str, str]) -> Form:
    """The form of a signature by that very key.

    Args:
        alg: its algorithm.
        jwk: its public key.
    """
    size = signature_size(ALGORITHMS[alg], jwk)

    return lambda value: type(value) is bytes and len(value) == size


def _is_error(error: Any) -> bool:
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return False
    data = error.get("data", {})
    if not isinstance(data, dict):
        return False
    after_ms = data.get("retry_after_ms")
    return after_ms is None or (type(after_ms) is int and 0 <= after_ms <= MAX_RETRY_AFTER_MS)


def outcome(answer: Mapping[str, Any] | Signed, form: Form) -> Outcome:
    """What a signer's frame says, a result having that form.

    Raises:
        Malformed: neither.
    """
    if isinstance(answer, tuple):
        _, signature = answer
        if not form(signature):
            raise Malformed("a frame's signature isn't one")
        return signature
    if "error" in answer:
        if not _is_error(answer["error"]) or "ok" in answer:
            raise Malformed("a frame's error isn't one")
        return from_wire(answer["error"])
    result = answer.get("ok")
    if not isinstance(result, dict) or not form(result):
        raise Malformed("a frame's result hasn't the form that its operation has")
    return result
