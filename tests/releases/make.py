"""Keeps what a released version leaves behind, for tests/releases/test_upgrade.py.

python -m tests.releases.make v0.1.0

Installs that revision into an environment of its own, has it make a configuration, keys in a new
SoftHSM2 token and their ledger, and puts all of it into tests/releases/VERSION, with what that
version said of its keys in `keys.json`. Where a text had the folder's path it has FOLDER now.
The PINs there are of no use to anybody.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.places import private_places
from tests.processes import ROOT, Token, end, new_token, running
from tests.stores.on_token import MODULE

HERE = Path(__file__).parent
FOLDER = "FOLDER"
LABEL = "released"

ORIGIN, SERVER = "https://api.example.com", "https://as.example.com"

WAIT_S = 60.0


def make(revision: str) -> Path:
    """Make the folder of that revision's version."""
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        folder = Path(name).resolve()
        source = folder / "source"
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", source, revision],
            check=True,
        )
        try:
            program = _installed(source, folder / "venv")
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", source], check=True)
        version = _said([program, "--version"], dict(os.environ)).split()[1]
        kept = folder / "kept"
        token = new_token(kept, LABEL)
        token.config.unlink()
        keys = _used(program, kept, token, folder)
        (kept / "keys.json").write_text(json.dumps(keys, indent=1) + "\n")
        (kept / "so-pin").unlink()
        _without_paths(kept)
        target = HERE / version
        if target.exists():
            sys.exit(f"{target} is there already")
        shutil.copytree(kept, target)
        return target


def _installed(source: Path, venv: Path) -> str:
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    subprocess.run([venv / "bin" / "python", "-m", "pip", "install", "-q", source], check=True)
    return str(venv / "bin" / "dpop-agent")


def _used(program: str, kept: Path, token: Token, folder: Path) -> list[dict[str, object]]:
    """Have it make keys in all states; what it says of them at the end."""
    env = {
        **os.environ,
        "SOFTHSM2_CONF": str(token.softhsm_conf),
        "DPOP_AGENT_CONFIG": str(token.config),
        "DPOP_AGENT_STATE_DIR": str(kept / "state"),
        "DPOP_AGENT_SOCK": str(folder / "run" / "agent.sock"),
    }

    def do(*words: str) -> str:
        return _said([program, *words], env)

    def keys() -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(do("key", "list", "--all", "--json"))["keys"]
        return found

    do("init", "--module", MODULE, "--pin-file", str(token.pin_file))
    serve = subprocess.Popen([program, "serve"], env=env, stderr=subprocess.DEVNULL)
    try:
        _until(
            lambda: (
                subprocess.run([program, "status"], env=env, capture_output=True).returncode == 0
            )
        )
        origins = ("--origin", ORIGIN)
        do("key", "create", "default", *origins, "--origin", SERVER, "--rotate-every", "30d")
        do("proof", "POST", f"{SERVER}/token")
        do("key", "rotate", "default")
        do("proof", "GET", f"{ORIGIN}/me")
        do("key", "rotate", "default", "--stage")
        do("key", "create", "signs", "--alg", "EdDSA", "--allow-sign-proof", *origins)
        do("key", "create", "rsa", "--alg", "PS256", *origins)
        do("key", "suspend", "rsa")
        do("key", "create", "leaked", *origins)
        do("key", "rotate", "leaked")
        do("key", "compromise", "leaked@1", "--yes")
        do("key", "create", "gone", *origins)
        do("key", "rotate", "gone")
        do("key", "destroy", "gone@1", "--yes")
        do("key", "create", "brief", "--drain", "0s", *origins)
        do("key", "rotate", "brief")
        _until(lambda: "retired" in json.dumps(keys()))
        return keys()
    finally:
        if running(serve.pid):
            assert end(serve) == 0


def _said(words: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(words, env=env, capture_output=True, text=True, cwd="/")
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


def _succeeds(words: list[str], env: dict[str, str]) -> bool:
    return subprocess.run(words, env=env, capture_output=True).returncode == 0


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        if time.monotonic() > deadline:
            sys.exit("it didn't happen in time")
        time.sleep(0.1)


def _without_paths(kept: Path) -> None:
    for path in kept.rglob("*"):
        if path.suffix == ".lock":  # empty, and made anew by who wants it
            path.unlink()
        elif path.is_file():
            data = path.read_bytes()
            path.write_bytes(data.replace(str(kept).encode(), FOLDER.encode()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.releases.make REVISION")
    with private_places():
        print(make(sys.argv[1]))
