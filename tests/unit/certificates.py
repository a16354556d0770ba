"""Certificates of a test's own, for servers on this machine."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Certificates:
    """An authority of the test's own, a server's certificate and a client's; each with its key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.authority = self._write("authority", self._key, self._key)
        self.server = self._write("server", ec.generate_private_key(ec.SECP256R1()), self._key)
        self.client = self._write("client", ec.generate_private_key(ec.SECP256R1()), self._key)

    def _write(self, name: str, key: Any, signer: Any) -> tuple[str, str]:
        now = datetime.datetime.now(datetime.UTC)
        named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        is_authority = name == "authority"
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        certificate = (
            x509.CertificateBuilder()
            .subject_name(named)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), True)
            .add_extension(x509.SubjectAlternativeName([address]), False)
            # Without the further ones Python 3.13 takes no chain (VERIFY_X509_STRICT, RFC 5280).
            .add_extension(_usage(signs_certificates=is_authority), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
            )
            .sign(signer, hashes.SHA256())
        )
        files = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return str(files[0]), str(files[1])

    def trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority[0])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    others = (
        *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=signs_certificates, **dict.fromkeys(others, False)
    )
