"""The JWK of a key that the library `cryptography` has."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from dpop_agent.errors import SignerFailed
from dpop_agent.jose import ec_jwk, okp_jwk, rsa_jwk

CURVES: dict[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


class NoJwk(SignerFailed):
    """A key of a kind that no algorithm here has."""


def jwk_of(public: object) -> dict[str, str]:
    """A public key as a JWK, required members only (RFC 7517).

    Raises:
        NoJwk
    """
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return rsa_jwk(numbers.n, numbers.e)
    if isinstance(public, ed25519.Ed25519PublicKey):
        return okp_jwk("Ed25519", public.public_bytes_raw())
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise NoJwk(f"there is no algorithm here for a {type(public).__name__}")
    point = public.public_numbers()
    for crv, curve in CURVES.items():
        if curve.name == public.curve.name:
            size = (curve.key_size + 7) // 8
            return ec_jwk(crv, point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big"))
    raise NoJwk(f"there is no algorithm here for the curve {public.curve.name}")
