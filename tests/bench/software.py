"""Proofs as they are made without an agent today: in process, by a private key in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from jwt.algorithms import ECAlgorithm

Prover = Callable[[str, str, str | None], str]
"""Makes a proof: `htm`, `htu`, the access token if any."""


def _claims(htm: str, htu: str, access_token: str | None) -> dict[str, Any]:
    claims = {"htm": htm, "htu": htu, "iat": int(time.time()), "jti": secrets.token_urlsafe(16)}
    if access_token is not None:
        claims["ath"] = _encoded(hashlib.sha256(access_token.encode()).digest())
    return claims


def _header(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    jwk = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk}


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_pyjwt() -> Prover:
    """By PyJWT."""
    key = ec.generate_private_key(ec.SECP256R1())
    header = _header(key)

    def prove(htm: str, htu: str, access_token: str | None = None) -> str:
        return jwt.encode(_claims(htm, htu, access_token), key, "ES256", header)

    return prove


def with_cryptography() -> Prover:
    """By hand, the signature alone by cryptography."""
    key = ec.generate_private_key(ec.SECP256R1())
    header = _encoded(json.dumps(_header(key)).encode())

    def prove(htm: str, htu: str, access_token: str | None = None) -> str:
        claims = json.dumps(_claims(htm, htu, access_token)).encode()
        signing_input = f"{header}.{_encoded(claims)}"
        r, s = decode_dss_signature(key.sign(signing_input.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signing_input}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    return prove
