"""Key pairs with modules that spell a curve otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from pkcs11 import Attribute
from pkcs11.exceptions import DomainParamsInvalid, PKCS11Error

from dpop_agent.errors import AlgorithmUnsupported
from dpop_agent.jose import ALGORITHMS
from dpop_agent.signer.pkcs11.keys import generate_pair

if TYPE_CHECKING:
    from dpop_agent.signer.pkcs11.token import Token

OID = bytes.fromhex("06032b6570")


class Session:
    """Takes some spellings of curves, and refuses the others by an error."""

    def __init__(self, *taken: bytes, error: PKCS11Error) -> None:
        self.made: list[bytes] = []
        self._taken = taken
        self._error = error

    def create_domain_parameters(self, _kind: object, params: Any, *, local: bool) -> Any:
        assert local
        curve = params[Attribute.EC_PARAMS]

        def generate_keypair(**_arguments: object) -> tuple[object, object]:
            if curve not in self._taken:
                raise self._error
            self.made.append(curve)
            return object(), object()

        return SimpleNamespace(generate_keypair=generate_keypair)


CURVE_REFUSED = (DomainParamsInvalid(), PKCS11Error("Unmapped error code 0x140"))


@pytest.mark.parametrize("error", CURVE_REFUSED, ids=["domain-params-invalid", "curve"])
def test_ed25519_is_made_by_its_oid_where_its_name_is_refused(error: PKCS11Error) -> None:
    session = Session(OID, error=error)
    token = cast("Token", SimpleNamespace(session=session))
    generate_pair(token, "aa", ALGORITHMS["EdDSA"], "label")
    assert session.made == [OID]


@pytest.mark.parametrize("error", CURVE_REFUSED, ids=["domain-params-invalid", "curve"])
@pytest.mark.parametrize("alg", ["EdDSA", "ES512"])
def test_a_curve_that_a_module_doesnt_have_is_an_unsupported_algorithm(
    error: PKCS11Error, alg: str
) -> None:
    token = cast("Token", SimpleNamespace(session=Session(error=error)))
    with pytest.raises(AlgorithmUnsupported):
        generate_pair(token, "aa", ALGORITHMS[alg], "label")


def test_another_error_is_no_matter_of_spelling() -> None:
    session = Session(OID, error=PKCS11Error("Unmapped error code 0x5"))
    token = cast("Token", SimpleNamespace(session=session))
    with pytest.raises(PKCS11Error, match="0x5"):
        generate_pair(token, "aa", ALGORITHMS["EdDSA"], "label")
    assert session.made == []
