"""TLS before a server, for names that exist here alone."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.exchanges.exchange import APPS
from tests.processes import NodeServer
from tests.servers import node

CERTIFICATE = "cert.pem"


@dataclass(frozen=True)
class Front:
    """One that listens."""

    origin: str
    options: tuple[str, ...]
    """What curl needs to find it and to believe it."""


@contextmanager
def front(folder: Path, host: str, **settings: Any) -> Iterator[Front]:
    """TLS for `https://HOST` with front.mjs's settings; curl runs in `folder`."""
    certificate(folder, host)
    script = APPS / "front.mjs"
    log = folder / f"front-{host}.log"
    server = NodeServer([node.node(), script, folder, json.dumps(settings)], log=log)
    try:
        to = f"{host}:443:127.0.0.1:{server.port}"
        yield Front(f"https://{host}", ("--cacert", CERTIFICATE, "--connect-to", to))
    finally:
        server.close()


def certificate(folder: Path, host: str) -> None:
    """A self-signed one, for an hour."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / CERTIFICATE).write_bytes(made.public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
