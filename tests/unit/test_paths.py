from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from dpop_agent import paths
from dpop_agent.errors import ConfigurationError, UnsafeSocket

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OTHER_UID = 54_321


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder in which only this user can change anything."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return home


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a file look as if it were another user's, whoever runs the tests."""
    taken: set[tuple[int, int]] = set()
    real = os.lstat

    def lstat(path: str) -> os.stat_result:
        info = real(path)
        if (info.st_dev, info.st_ino) not in taken:
            return info
        fields = list(info)
        fields[stat.ST_UID] = OTHER_UID
        return os.stat_result(fields)

    def give(path: Path) -> None:
        info = real(path)
        taken.add((info.st_dev, info.st_ino))
        monkeypatch.setattr("os.lstat", lstat)

    return give


def folder(path: Path, mode: int = 0o700) -> Path:
    path.mkdir(parents=True)
    path.chmod(mode)
    return path


def refusal(folder: Path) -> str:
    with pytest.raises(UnsafeSocket) as refused:
        paths.check_socket_folder(str(folder / "agent.sock"))
    assert refused.value.hint
    return refused.value.message


@pytest.mark.parametrize("mode", [0o700, 0o500])
def test_a_private_folder_of_ours_is_taken(home: Path, mode: int) -> None:
    paths.check_socket_folder(str(folder(home / "run", mode) / "agent.sock"))


def test_a_folder_of_another_user_is_refused(home: Path, give_away: Callable[[Path], None]) -> None:
    run = folder(home / "run")
    give_away(run)
    assert refusal(run) == f"{run} belongs to uid {OTHER_UID}, not to uid {os.getuid()}"


def test_a_folder_of_root_is_refused_for_anybody_else(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder(home / "run")
    owner = run.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: OTHER_UID)
    assert refusal(run) == f"{run} belongs to uid {owner}, not to uid {OTHER_UID}"


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o707, 0o702, 0o750, 0o755, 0o711, 0o1777])
def test_a_folder_that_others_can_reach_is_refused(home: Path, mode: int) -> None:
    run = folder(home / "run", mode)
    assert refusal(run) == f"{run} has mode {mode:04o}: others can reach it"


def test_a_symbolic_link_is_refused_even_to_a_safe_folder(home: Path) -> None:
    folder(home / "real")
    link = home / "run"
    link.symlink_to(home / "real")
    assert refusal(link) == f"{link} is a symbolic link"


def test_a_file_is_refused(home: Path) -> None:
    (home / "run").write_text("")
    assert refusal(home / "run") == f"{home / 'run'} isn't a folder"


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_an_ancestor_that_others_can_write_to_is_refused(home: Path, mode: int) -> None:
    run = folder(home / "shared" / "mine" / "run")
    (home / "shared").chmod(mode)
    assert refusal(run).startswith(f"{home / 'shared'}, above the socket, has mode {mode:04o}")


def test_a_sticky_ancestor_is_taken(home: Path) -> None:
    run = folder(home / "tmp" / "run")
    (home / "tmp").chmod(0o1777)
    paths.check_socket_folder(str(run / "agent.sock"))


def test_an_ancestor_of_another_user_is_refused(
    home: Path, give_away: Callable[[Path], None]
) -> None:
    run = folder(home / "theirs" / "run")
    give_away(home / "theirs")
    assert refusal(run) == f"{home / 'theirs'}, above the socket, belongs to uid {OTHER_UID}"


def test_an_ancestor_may_be_a_link_of_ours_to_a_safe_place(home: Path) -> None:
    folder(home / "real" / "run")
    (home / "relative").symlink_to("real")
    (home / "twice").symlink_to(home / "relative")
    paths.check_socket_folder(str(home / "twice" / "run" / "agent.sock"))


def test_an_ancestor_that_is_a_link_in_a_shared_folder_is_refused(home: Path) -> None:
    folder(home / "real" / "run")
    shared = folder(home / "shared")
    (shared / "link").symlink_to(home / "real")
    shared.chmod(0o777)
    assert refusal(shared / "link" / "run").startswith(f"{shared}, above the socket, has mode 0777")


def test_a_link_through_a_shared_folder_is_refused(home: Path) -> None:
    folder(home / "real" / "run")
    shared = folder(home / "shared")
    (shared / "link").symlink_to(home / "real")
    (home / "safe-looking").symlink_to(shared / "link")
    shared.chmod(0o777)
    assert "above the socket, has mode 0777" in refusal(home / "safe-looking" / "run")


def test_an_ancestor_that_is_a_link_of_another_user_is_refused(
    home: Path, give_away: Callable[[Path], None]
) -> None:
    folder(home / "real" / "run")
    (home / "link").symlink_to(home / "real")
    give_away(home / "link")
    said = refusal(home / "link" / "run")
    assert said == f"{home / 'link'}, above the socket, belongs to uid {OTHER_UID}"


def test_a_missing_folder_is_told_apart_from_an_unsafe_one(home: Path) -> None:
    with pytest.raises(FileNotFoundError):
        paths.check_socket_folder(str(home / "none" / "agent.sock"))


@pytest.mark.parametrize("path", ["agent.sock", "./agent.sock", "run/agent.sock", ""])
def test_a_relative_socket_path_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match="isn't absolute"):
        paths.check_socket_path(path)


def test_a_socket_path_that_the_system_cannot_take_is_refused_by_its_bytes() -> None:
    limit = paths.MAX_SOCKET_PATH
    paths.check_socket_path("/" + "a" * (limit - 1))
    paths.check_socket_path("/" + "é" * (limit // 2))
    for path in ("/" + "a" * limit, "/" + "é" * (limit // 2 + 1)):
        with pytest.raises(ConfigurationError, match=f"more than the {limit} that work"):
            paths.check_socket_path(path)


def test_a_private_folder_is_made_with_mode_0700_and_an_existing_one_left_alone(
    home: Path,
) -> None:
    made = home / "a" / "b"
    paths.make_private_folder(str(made))
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)
    paths.make_private_folder(str(made))
    assert stat.S_IMODE(made.stat().st_mode) == 0o755


@pytest.fixture
def no_places(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("SOCK", "CONFIG", "STATE_DIR"):
        monkeypatch.delenv(f"DPOP_AGENT_{name}", raising=False)
    return monkeypatch


def test_the_environment_overrides_every_place(no_places: pytest.MonkeyPatch) -> None:
    no_places.setenv("DPOP_AGENT_SOCK", "/run/x/a.sock")
    no_places.setenv("DPOP_AGENT_CONFIG", "/etc/x.toml")
    no_places.setenv("DPOP_AGENT_STATE_DIR", "/var/x")
    assert paths.agent_socket() == "/run/x/a.sock"
    assert paths.admin_socket(paths.agent_socket()) == "/run/x/admin.sock"
    assert paths.config_file() == "/etc/x.toml"
    assert paths.state_folder() == "/var/x"


def test_the_default_places_are_those_of_the_xdg_folders(no_places: pytest.MonkeyPatch) -> None:
    no_places.setattr("sys.platform", "linux")
    no_places.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    no_places.setenv("XDG_CONFIG_HOME", "/home/u/c")
    no_places.setenv("XDG_STATE_HOME", "/home/u/s")
    assert paths.agent_socket() == "/run/user/7/dpop-agent/agent.sock"
    assert paths.config_file() == "/home/u/c/dpop-agent/config.toml"
    assert paths.state_folder() == "/home/u/s/dpop-agent"
