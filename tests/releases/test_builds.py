"""What is released: what `python -m build` makes, what is in it, and that it works installed."""

from __future__ import annotations

import email
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest
import readme_renderer.markdown

from dpop_agent import __version__
from tests.documents import Block, commands
from tests.emulators import file_of, need
from tests.newcomer import BUILD, wheels
from tests.processes import ROOT, Agent, Token
from tests.user_manager import HOME, UserManager, user_manager

PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
"""An interpreter without any of our libraries."""

URL = "https://api.example.com/v1/me"

NEVER_RELEASED = (
    "softhsm/.state/pin",
    "tests/.cache/node_modules/some.js",
    "dpop_agent/__pycache__/config.pyc",
    "dist/dpop_agent-0.0.0.tar.gz",
    ".venv/bin/python",
    "notes.txt",
)
"""What may lie in the folder of whoever builds."""


SHARED = {
    "man/man1/dpop-agent.1": "dpop_agent/cli/shell/dpop-agent.1",
    "bash-completion/completions/dpop-agent": "dpop_agent/cli/shell/dpop-agent.bash",
    "zsh/site-functions/_dpop-agent": "dpop_agent/cli/shell/_dpop-agent",
    "fish/vendor_completions.d/dpop-agent.fish": "dpop_agent/cli/shell/dpop-agent.fish",
}
"""What the wheel puts where man and the shells look for it."""


class Built(NamedTuple):
    """What was made, and the files that are kept, of which."""

    kept: set[str]
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """What `python -m build` makes of this folder, with more in it than is to be released."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this isn't a git checkout")
    kept = {name for name in listed.stdout.rstrip("\0").split("\0") if (ROOT / name).exists()}
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    for name in kept:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for name in NEVER_RELEASED:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("not for anybody else")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "made", source],
        check=True,
        timeout=300,
        stdout=subprocess.DEVNULL,
    )
    made = sorted((folder / "made").iterdir())
    assert [path.suffix for path in made] == [".whl", ".gz"]
    return Built(kept, *made)


def test_the_wheel_has_the_package_and_its_license_and_nothing_else(built: Built) -> None:
    info = f"dpop_agent-{__version__}.dist-info"
    shared = f"dpop_agent-{__version__}.data/data/share"
    assert built.wheel.name == f"dpop_agent-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
        told = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
        for name, source in SHARED.items():
            assert wheel.read(f"{shared}/{name}") == (ROOT / source).read_bytes()
    package = {name for name in names if not name.startswith((f"{info}/", f"{shared}/"))}
    assert names - package - {f"{shared}/{name}" for name in SHARED} == {
        name for name in names if name.startswith(f"{info}/")
    }
    assert package == {name for name in built.kept if name.startswith("dpop_agent/")}
    assert {"dpop_agent/py.typed", "dpop_agent/PROTOCOL.md"} <= package
    assert not {name for name in names if "test" in name}
    assert f"{info}/licenses/LICENSE" in names
    assert told["Version"] == __version__
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Requires-Python"] == ">=3.11"
    assert entry_points == "[console_scripts]\ndpop-agent = dpop_agent.cli.main:program\n"


def test_the_sdist_has_all_that_it_takes_to_change_and_test_it_and_nothing_of_whoever_builds(
    built: Built,
) -> None:
    top = f"dpop_agent-{__version__}"
    assert built.sdist.name == f"{top}.tar.gz"
    with tarfile.open(built.sdist) as sdist:
        names = {str(PurePosixPath(name).relative_to(top)) for name in sdist.getnames()}
    assert names == built.kept | {"PKG-INFO"}
    assert {"docs/agents-in-containers.md", "tests/run", ".ci/run", "LICENSE"} <= names


def test_the_readme_stands_on_pypi(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        told = email.message_from_bytes(wheel.read(name))
    assert told["Description-Content-Type"] == "text/markdown"
    payload = told.get_payload(decode=True)
    assert isinstance(payload, bytes)
    warnings = io.StringIO()
    shown = readme_renderer.markdown.render(payload.decode("utf-8"), stream=warnings, variant="GFM")
    assert shown, warnings.getvalue()
    links = re.findall(r"(?:href|src)=\"(?!#user-content-)([^\"]*)\"", shown)  # but headings' own
    assert [link for link in links if not link.startswith("https://")] == []

    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    urls = [text.split(", ")[1] for text in told.get_all("Project-URL", [])]
    assert urls == [*repository.values()]
    here = f"{repository['Repository']}/blob/v{__version__}/"
    files = {link.removeprefix(here) for link in links if link.startswith(here)}
    assert {"SECURITY.md", "docs/index.md", "dpop_agent/PROTOCOL.md"} <= files
    assert {file for file in files if file not in built.kept} == set()
    assert all(link.startswith(repository["Repository"]) for link in repository.values())
    of_others = [link for link in links if "github.com/dpop-agent" in link and here not in link]
    assert of_others == [repository["Repository"]], "to clone it; all else is of this version"


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it depends on, as wheels: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheels")
    wheels(folder, "dpop-agent", *BUILD, "pip")
    return folder


@pytest.fixture
def home(wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty home, in which installers find packages in the wheelhouse alone."""
    for name in os.environ:
        if name.startswith(("PIP_", "PIPX_", "UV_", "XDG_")):
            monkeypatch.delenv(name)
    with tempfile.TemporaryDirectory(prefix="home-", dir="/tmp") as folder:
        for name, value in {
            "HOME": folder,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_FIND_LINKS": str(wheelhouse),
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_INDEX": "1",
            "UV_OFFLINE": "1",
            "UV_PYTHON_DOWNLOADS": "never",
        }.items():
            monkeypatch.setenv(name, value)
        yield Path(folder)


def run(*words: str | Path) -> str:
    done = subprocess.run(words, cwd="/", timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def by_pip(package: Path, home: Path) -> Path:
    run(PYTHON, "-m", "venv", home / "venv")
    run(home / "venv" / "bin" / "pip", "install", package)
    return home / "venv" / "bin" / "dpop-agent"


def by_pipx(package: Path, home: Path) -> Path:
    run(sys.executable, "-m", "pipx", "install", "--backend", "pip", "--python", PYTHON, package)
    return home / ".local" / "bin" / "dpop-agent"


def by_uv(package: Path, home: Path) -> Path:
    found = ("--no-index", "--find-links", os.environ["PIP_FIND_LINKS"])
    run(sys.executable, "-m", "uv", "tool", "install", "--python", PYTHON, *found, package)
    return home / ".local" / "bin" / "dpop-agent"


def serves_a_proof(program: Path, token: Token, make_agent: Callable[..., Agent]) -> None:
    """What somebody does with it first. That no library comes from here is seen by the places."""
    agent = make_agent(token.config, preexec=["sh", "-c", 'cd / && exec "$0" serve', str(program)])
    env = {name: value for name, value in agent.env.items() if not name.startswith("PYTHON")}

    def do(*words: str, stdin: str = "") -> str:
        done = subprocess.run(
            [program, *words],
            cwd="/",
            env=env,
            input=stdin,
            timeout=60,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert do("--version") == f"dpop-agent {__version__}\n"
    agent.start()
    do("key", "create", "default", "--origin", URL.removesuffix("/v1/me"))
    proof = do("proof", "GET", URL)
    assert do("verify", "--htm", "GET", "--htu", URL, stdin=proof).startswith("ok jkt=")
    do("config", "set", "agent.lock_after", "15m")
    do("config", "check")
    mapped = Path(f"/proc/{agent.pid}/maps").read_text()
    assert "uvloop" in mapped
    assert str(ROOT) not in mapped


@pytest.mark.parametrize("what", ["wheel", "sdist"])
def test_a_fresh_environment_with_it_serves_a_proof(
    built: Built, home: Path, token: Token, make_agent: Callable[..., Agent], what: str
) -> None:
    serves_a_proof(by_pip(getattr(built, what), home), token, make_agent)


@pytest.mark.parametrize("install", [by_pipx, by_uv])
def test_installed_as_a_tool_it_serves_a_proof(
    built: Built,
    home: Path,
    token: Token,
    make_agent: Callable[..., Agent],
    install: Callable[[Path, Path], Path],
) -> None:
    program = install(built.wheel, home)
    assert program.resolve().is_relative_to(home.resolve())
    serves_a_proof(program, token, make_agent)


def test_man_finds_the_page_of_what_pipx_installed(built: Built, home: Path) -> None:
    need("man-db")
    program = by_pipx(built.wheel, home)
    found = subprocess.run(
        [file_of("man-db"), "--where", "dpop-agent"],
        env={**os.environ, "PATH": f"{program.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    link = home / ".local/share/man/man1/dpop-agent.1"
    assert link.is_symlink()
    assert found.stdout.strip() == str(link.resolve())


def tool_of_pipx(user: UserManager, wheel: Path) -> str:
    words = ("-m", "pipx", "install", "--backend", "pip", "--python", "/usr/bin/python3")
    wheels = str(wheel.parent)
    user.run(
        *("/usr/bin/python3", *words, str(wheel)),
        PYTHONPATH="/opt/libraries",
        PIP_FIND_LINKS=wheels,
        PIP_NO_INDEX="1",
    )
    return f"{HOME}/.local/share/pipx/venvs/dpop-agent/bin/python"


def tool_of_uv(user: UserManager, wheel: Path) -> str:
    uv = Path("/opt/project") / (Path(sys.prefix) / "bin" / "uv").relative_to(ROOT)
    user.run(
        *(str(uv), "tool", "install", "--python", "/usr/bin/python3", "--no-index"),
        *("--find-links", str(wheel.parent), str(wheel)),
        UV_PYTHON_DOWNLOADS="never",
    )
    return f"{HOME}/.local/share/uv/tools/dpop-agent/bin/python"


@pytest.mark.runs("README.md", "Install it")
def test_the_commands_of_the_readme_install_a_service_that_signs(
    built: Built, wheelhouse: Path, blocks: list[Block]
) -> None:
    (block,) = blocks
    with user_manager() as user, tempfile.TemporaryDirectory(dir="/tmp") as name:
        everybodys = Path(name)
        everybodys.chmod(0o755)
        for wheel in (built.wheel, *wheelhouse.iterdir()):
            shutil.copy(wheel, everybodys)
        user.run("rm", f"{HOME}/.config/dpop-agent/config.toml")
        user.write(f"{HOME}/bin/pipx", PIPX, "700")
        user.env |= {
            "PATH": f"{HOME}/bin:{HOME}/.local/bin:/usr/bin:/bin",
            "PIP_FIND_LINKS": name,
            "PIP_NO_INDEX": "1",
            "SOFTHSM2_CONF": f"{HOME}/token/softhsm2.conf",
        }
        for line, _ in commands(block):
            user.run("sh", "-c", line)
            if line.startswith("dpop-agent init"):  # nobody is here to type the PIN
                setting = ("stores.soft.pin_source", f"file:{HOME}/token/pin")
                user.run(f"{HOME}/.local/bin/dpop-agent", "config", "set", *setting)
        proof = user.run(f"{HOME}/.local/bin/dpop-agent", "proof", "GET", URL).stdout
        assert proof.startswith("ey")


PIPX = """\
#!/bin/sh
PYTHONPATH=/opt/libraries exec /usr/bin/python3 -m pipx "$@" --backend pip --python /usr/bin/python3
"""


@pytest.mark.parametrize("install", [tool_of_pipx, tool_of_uv])
def test_the_service_of_an_installed_tool_serves_a_proof(
    built: Built, wheelhouse: Path, install: Callable[[UserManager, Path], str]
) -> None:
    with user_manager() as user, tempfile.TemporaryDirectory(dir="/tmp") as name:
        everybodys = Path(name)
        everybodys.chmod(0o755)
        for wheel in (built.wheel, *wheelhouse.iterdir()):
            shutil.copy(wheel, everybodys)
        python = install(user, everybodys / built.wheel.name)
        program = f"{HOME}/.local/bin/dpop-agent"
        user.run(program, "service", "install")
        unit = user.read(f"{HOME}/.config/systemd/user/dpop-agent.service")
        assert python in unit or program in unit
        user.run(program, "key", "create", "default", "--any-origin")
        proof = user.run(program, "proof", "GET", URL).stdout
        assert user.run(program, "verify", "--htm", "GET", "--htu", URL, stdin=proof).stdout
        user.run(program, "service", "uninstall")
