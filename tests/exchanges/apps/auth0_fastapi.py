"""An API behind auth0-fastapi-api, on a free port of 127.0.0.1: prints {"port": …}, and ends when
its standard input does. `python auth0_fastapi.py JWKS`, in an environment that has it.
"""

import json
import socket
import sys
import threading

import uvicorn  # type: ignore[import-not-found, unused-ignore]  # of another environment
from fastapi import Depends, FastAPI  # type: ignore[import-not-found, unused-ignore]
from fastapi_plugin import Auth0FastAPI  # type: ignore[import-not-found, unused-ignore]


async def issuer(uri: str) -> object:
    """What Auth0 would answer."""
    if uri.endswith("/jwks.json"):
        return json.loads(sys.argv[1])
    return {"issuer": "https://issuer.example/", "jwks_uri": "https://issuer.example/jwks.json"}


app = FastAPI()
auth0 = Auth0FastAPI(domain="issuer.example", audience="https://api.example", custom_fetch=issuer)


async def orders() -> object:
    return {"orders": []}


def guarded(method: str, status: int, **wanted: str) -> None:
    app.add_api_route(
        "/orders",
        orders,
        methods=[method],
        status_code=status,
        dependencies=[Depends(auth0.require_auth(**wanted))],
    )


guarded("GET", 200)
guarded("POST", 201)
guarded("DELETE", 200, scopes="delete:orders")
listening = socket.create_server(("127.0.0.1", 0))
print(json.dumps({"port": listening.getsockname()[1]}), flush=True)
server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))


def until_its_input_ends() -> None:
    sys.stdin.read()
    server.should_exit = True


threading.Thread(target=until_its_input_ends, daemon=True).start()
server.run(sockets=[listening])
