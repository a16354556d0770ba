"""express-oauth2-jwt-bearer, Auth0's for Node, run here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.exchanges import api
from tests.exchanges.exchange import APPS, Curl, Exchange, Keys
from tests.exchanges.proofs import proof
from tests.processes import NodeServer
from tests.servers import node

SERVER = "express-oauth2-jwt-bearer 1.10.0"
SCRIPT = APPS / "auth0_express.mjs"


def exchanges(folder: Path, keys: Keys, curl: Curl) -> Iterator[Exchange]:
    issuer = api.Issuer()
    command: list[str | Path] = [node.node(), SCRIPT, node.packages(), json.dumps(issuer.jwks)]
    server = NodeServer(command, log=folder / "express.log")
    try:
        yield from api.exchanges(server.origin, issuer, keys, curl)
        uri, token = f"{server.origin}/orders", issuer.access_token(keys.active)
        values = [proof(keys.active, "GET", uri, access_token=token) for _ in range(2)]
        headers = [("Authorization", f"DPoP {token}"), *(("DPoP", value) for value in values)]
        yield Exchange(
            "two-proofs", "several_proofs", "two DPoP headers", curl("GET", uri, headers)
        )
    finally:
        server.close()
