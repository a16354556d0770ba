"""Make the exchanges anew: `python -m tests.exchanges.record [SERVER …]`.

Starts each server, makes each exchange of its module with curl, and writes SERVER/NAME.txt and
exchanges.json. The names are the same every time; keys, nonces and times are new.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, cast

from tests.exchanges.exchange import FOLDER, LIST, Curl, Exchange, Keys, listed

SERVERS = (
    "oidc_provider",
    "auth0_express",
    "auth0_fastapi",
    "better_auth",
    "bluesky",
    "mcp_suite",
    "keycloak",
    "spring",
    "okta",
)


IN_A_TERMINAL = ("auth0_express", "better_auth", "keycloak", "spring")
"""Whose exchanges are pasted from one; those of the others went into a file."""


class Recorded(Protocol):
    """A server's module."""

    SERVER: str
    """Its name and version."""

    def exchanges(self, folder: Path, keys: Keys, curl: Curl) -> Iterator[Exchange]:
        """Start it, and make each of them; it ends with the iterator."""
        ...


def record(server: str) -> None:
    """Replace this server's files, and its rows."""
    module = loaded(server)
    name = server.replace("_", "-")
    target = FOLDER / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    rows = []
    with scratch() as folder:
        keys = Keys()
        curl = Curl(Path(folder), terminal=server in IN_A_TERMINAL)
        for exchange in module.exchanges(Path(folder), keys, curl):
            (target / f"{exchange.name}.txt").write_text(exchange.output)
            if exchange.metadata is not None:
                metadata = json.dumps(exchange.metadata, indent=2) + "\n"
                (target / "metadata.json").write_text(metadata)
            rows.append(row(name, module.SERVER, exchange, keys))
    kept = [old for old in listed() if not old["file"].startswith(f"{name}/")]
    whole = sorted([*kept, *rows], key=lambda row: str(row["file"]))
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in whole)
    LIST.write_text(f"[\n{lines}\n]\n")


def row(name: str, server: str, exchange: Exchange, keys: Keys) -> dict[str, Any]:
    """As in exchanges.json."""
    run: bool | str = exchange.source is None
    if exchange.measured:
        run = "measured earlier"
    source = {} if exchange.source is None else {"source": exchange.source}
    return {
        "file": f"{name}/{exchange.name}.txt",
        "server": server,
        "run": run,
        "cause": exchange.cause,
        "known": keys.known(),
        "metadata": None if exchange.metadata is None else f"{name}/metadata.json",
        "note": exchange.note,
        **source,
    }


def loaded(server: str) -> Recorded:
    """The module of a server."""
    return cast(Recorded, importlib.import_module(f"tests.exchanges.{server}"))


def scratch() -> AbstractContextManager[str]:
    """A folder that is gone afterwards."""
    return tempfile.TemporaryDirectory(prefix="exchanges-")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.exchanges.record", description=__doc__)
    parser.add_argument("servers", nargs="*", metavar="SERVER", help=", ".join(SERVERS))
    for server in parser.parse_args().servers or SERVERS:
        record(server)


if __name__ == "__main__":
    main()
