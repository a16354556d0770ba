"""Known answers of the RFCs, and keys in this process that sign what a store would sign."""

from __future__ import annotations

import functools
import hashlib

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from dpop_agent import jose, proof

RFC9449_JWK = {
    "kty": "EC",
    "crv": "P-256",
    "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
    "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
}
RFC9449_JKT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"  # sections 6.1 and 10

# Section 4.1, figure 2: POST https://server.example.com/token at 1562262616
RFC9449_TOKEN_REQUEST_PROOF = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUk"
    "lDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUw"
    "Q2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6I"
    "mh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A"
    "0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
)
# Section 7.1, figure 12: GET https://resource.example.org/protectedresource at 1562262618
RFC9449_RESOURCE_PROOF = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUk"
    "lDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUw"
    "Q2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1Ijoia"
    "HR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjo"
    "iZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRi"
    "mPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
)
RFC9449_ACCESS_TOKEN = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
RFC9449_ATH = "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"

# RFC 7638 section 3.1
RFC7638_JWK = {
    "kty": "RSA",
    "e": "AQAB",
    "n": (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPe"
        "bWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY36"
        "8QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4l"
        "Fd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    ),
}
RFC7638_JKT = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"

# RFC 8037 appendix A.2 and A.3
RFC8037_JWK = {
    "kty": "OKP",
    "crv": "Ed25519",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
}
RFC8037_JKT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"

_CURVES: dict[str, tuple[ec.EllipticCurve, hashes.HashAlgorithm]] = {
    "ES256": (ec.SECP256R1(), hashes.SHA256()),
    "ES384": (ec.SECP384R1(), hashes.SHA384()),
    "ES512": (ec.SECP521R1(), hashes.SHA512()),
}


@functools.cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """One RSA key for all tests: making them is slow."""
    return rsa.generate_private_key(65537, bits)


class SoftKey:
    """A key pair; the same `seed` gives the same one, other than for RSA."""

    def __init__(self, alg: str = "ES256", seed: int = 1) -> None:
        self.alg = alg
        self.row = jose.ALGORITHMS[alg]
        digest = hashlib.sha256(b"%d" % seed).digest()
        self.private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
        if self.row.kty == "EC":
            self.private = ec.derive_private_key(int.from_bytes(digest, "big"), _CURVES[alg][0])
            numbers = self.private.public_key().public_numbers()
            size = self.row.coordinate_size
            assert self.row.crv
            self.jwk = jose.ec_jwk(
                self.row.crv, numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big")
            )
        elif self.row.kty == "RSA":
            self.private = rsa_key()
            modulus = self.private.public_key().public_numbers()
            self.jwk = jose.rsa_jwk(modulus.n, modulus.e)
        else:
            self.private = ed25519.Ed25519PrivateKey.from_private_bytes(digest)
            self.jwk = jose.okp_jwk("Ed25519", self.private.public_key().public_bytes_raw())
        self.jkt = jose.thumbprint(self.jwk)
        self.header = proof.header(alg, self.jwk)

    def sign(self, data: bytes) -> bytes:
        """A JWS signature (RFC 7518 section 3)."""
        key = self.private
        if isinstance(key, ec.EllipticCurvePrivateKey):
            size = self.row.coordinate_size
            r, s = decode_dss_signature(key.sign(data, ec.ECDSA(_CURVES[self.alg][1])))
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")
        if isinstance(key, rsa.RSAPrivateKey):
            pad: padding.AsymmetricPadding = padding.PKCS1v15()
            if self.alg == "PS256":
                pad = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
            return key.sign(data, pad, hashes.SHA256())
        return key.sign(data)

    def complete(self, signing_input: str) -> str:
        """The proof, from its signing input."""
        return f"{signing_input}.{jose.b64url(self.sign(signing_input.encode('ascii')))}"

    def proof(
        self,
        htm: str = "POST",
        htu: str = "https://as.example/token",
        *,
        iat: int,
        ath: str | None = None,
        nonce: str | None = None,
    ) -> str:
        """A proof by the product's own builder."""
        return self.complete(
            proof.signing_input(self.header, htm=htm, htu=htu, iat=iat, ath=ath, nonce=nonce)
        )
