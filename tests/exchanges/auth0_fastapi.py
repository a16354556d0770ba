"""auth0-fastapi-api over auth0-api-python, run here in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.exchanges import api
from tests.exchanges.exchange import APPS, Curl, Exchange, Keys
from tests.processes import NodeServer

SERVER = "auth0-fastapi-api 1.0.0b9, auth0-api-python 1.0.0b10"
PACKAGES = (
    "auth0-fastapi-api==1.0.0b9",
    "auth0-api-python==1.0.0b10",
    "authlib==1.9.10",
    "fastapi==0.165.0",
    "uvicorn==0.54.0",
)
SCRIPT = APPS / "auth0_fastapi.py"


def exchanges(folder: Path, keys: Keys, curl: Curl) -> Iterator[Exchange]:
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    issuer = api.Issuer()
    server = NodeServer([python, SCRIPT, json.dumps(issuer.jwks)], log=folder / "fastapi.log")
    try:
        yield from api.exchanges(server.origin, issuer, keys, curl)
    finally:
        server.close()
