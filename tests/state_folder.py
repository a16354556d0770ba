"""The files of a state folder, as tests read and change them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpop_agent.agent.lines import composed, sealed
from dpop_agent.jose import ec_jwk, thumbprint


def new_public_key() -> dict[str, Any]:
    """`jwk` and `jkt` of an ES256 key that nobody has: its point is random."""
    jwk = ec_jwk("P-256", secrets.token_bytes(32), secrets.token_bytes(32))
    return {"jwk": jwk, "jkt": thumbprint(jwk)}


@contextmanager
def changed(path: Path) -> Iterator[dict[str, Any]]:
    """A file's contents, to be changed; its checksums are made anew afterwards."""
    document: dict[str, Any] = json.loads(path.read_text())
    yield document
    write(path, document)


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a file as the agent would, whatever it says."""
    header = {n: v for n, v in document.items() if n not in ("lines", "check")}
    names = ("keys", "requests", "forgotten", "sockets", "uses")
    sections = {n: header.pop(n) for n in names if n in header}
    lines: dict[str, list[bytes]] = {
        name: [sealed({n: v for n, v in members.items() if n != "check"}) for members in rows]
        for name, rows in sections.items()
    }
    path.write_bytes(b"".join(composed(header, lines)))
