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


def jwk_of(private: PrivateKey) -> dict[str, str]:
    if isinstance(private, rsa.RSAPrivateKey):
        numbers = private.public_key().public_numbers()
        return rsa_jwk(numbers.n, numbers.e)
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return okp_jwk("Ed25519", private.public_key().public_bytes_raw())
    point = private.public_key().public_numbers()
    for crv, curve in CURVES.items():
        if curve.name == private.curve.name:
            size = (curve.key_size + 7) // 8
            return ec_jwk(crv, point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big"))
    raise SignerFailed(f"the keychain's key is on the curve {private.curve.name}")
