"""The exchanges on file are still what the servers say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulators import need
from tests.exchanges.exchange import FOLDER, Curl, Keys, listed, statuses, words
from tests.exchanges.record import loaded


@pytest.mark.parametrize("server", ["oidc_provider", "better_auth", "auth0_express", "mcp_suite"])
def test_a_server_still_says_what_is_on_file(
    server: str, node_packages: Path, tmp_path: Path
) -> None:
    need("curl")
    name = server.replace("_", "-")
    made = loaded(server).exchanges(tmp_path, Keys(), Curl(tmp_path))
    now = {f"{name}/{one.name}.txt": (one.cause, said(one.output)) for one in made}

    rows = [row for row in listed() if row["file"].startswith(f"{name}/")]
    filed = {row["file"]: (row["cause"], said((FOLDER / row["file"]).read_text())) for row in rows}
    assert now == filed
    assert filed


def said(output: str) -> tuple[list[int], list[str]]:
    """What mustn't change."""
    return statuses(output), words(output)
