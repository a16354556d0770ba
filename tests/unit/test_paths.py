from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dpop_agent import paths, users
from dpop_agent.errors import ConfigurationError, UnsafeSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    make(made)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    made.chmod(0o755)
    make(made)
    assert stat.S_IMODE(made.stat().st_mode) == 0o755


def make(folder: Path) -> None:
    paths.make_private_folder(str(folder), "the folder", instead="name another")


def test_no_folder_is_made_where_others_could_change_it(home: Path) -> None:
    shared = folder(home / "shared", 0o777)
    (shared / "link").symlink_to(home)
    for wanted in (shared / "a" / "b", shared / "link" / "b"):
        with pytest.raises(ConfigurationError, match="above the folder, has mode 0777"):
            make(wanted)
    assert not (shared / "a").exists()
    assert not (home / "b").exists()


def test_the_folders_above_a_private_one_are_made_for_their_owner_to_change(home: Path) -> None:
    umask = os.umask(0)
    try:
        make(home / "a" / "b")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((home / "a").stat().st_mode) == 0o755


def test_for_a_client_a_missing_runtime_folder_is_unsafe(home: Path) -> None:
    path = str(home / "run" / "dpop-agent" / "agent.sock")
    with pytest.raises(UnsafeSocket, match=f"there is no folder {home / 'run'}, which") as error:
        paths.check_socket_folder(path, client=True)
    assert "dpop-agent serve" in error.value.hint
    (home / "run").mkdir()
    with pytest.raises(FileNotFoundError):
        paths.check_socket_folder(path, client=True)


def test_for_a_client_a_folder_of_root_that_nobody_else_can_write_to_is_fine(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox's own, into which the socket is mounted as a file."""
    if os.getuid() != 0:
        pytest.skip("a folder of root's takes root to make")
    run = folder(home / "run", 0o755)
    monkeypatch.setattr("os.getuid", lambda: OTHER_UID)
    paths.check_socket_folder(str(run / "agent.sock"), client=True)
    run.chmod(0o1777)
    with pytest.raises(UnsafeSocket, match="has mode 1777: others can replace what is in it"):
        paths.check_socket_folder(str(run / "agent.sock"), client=True)


# Whatever is read: only we and root can change it, or put another in its place


def opened(path: Path) -> str:
    descriptor = paths.open_only_ours(str(path), "the file", instead="name another")
    with open(descriptor) as file:
        return file.read()


def refused(path: Path) -> str:
    """Why a file or folder isn't taken: by a check, and by opening where it is a file."""
    with pytest.raises(ConfigurationError) as checked:
        paths.check_only_ours(str(path), "the file", instead="name another")
    assert checked.value.hint
    if path.is_file():
        with pytest.raises(ConfigurationError) as other:
            opened(path)
        assert other.value.message == checked.value.message
    return checked.value.message


def a_file(path: Path, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("content")
    path.chmod(mode)
    return path


def test_a_file_that_only_we_can_change_is_read_by_whatever_links_of_ours(home: Path) -> None:
    file = a_file(home / "real" / "file", 0o644)
    (home / "file").symlink_to("real/file")
    (home / "up").symlink_to("real/../twice")
    (home / "twice").symlink_to(home / "file")
    (home / "folder").symlink_to("./real/")
    for path in (file, home / "file", home / "up", home / "twice", home / "folder" / "file"):
        paths.check_only_ours(str(path), "the file", instead="name another")
        assert opened(path) == "content"


def test_a_relative_path_is_checked_from_the_root_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = a_file(home / "shared" / "mine" / "file")
    monkeypatch.chdir(file.parent)
    assert opened(Path("file")) == "content"
    (home / "shared").chmod(0o777)
    assert refused(Path("file")).startswith(f"{home / 'shared'}, above the file, has mode 0777")


@pytest.mark.parametrize("mode", [0o622, 0o602, 0o620, 0o666])
def test_a_file_that_others_can_write_to_is_refused(home: Path, mode: int) -> None:
    file = a_file(home / "file", mode)
    assert refused(file) == f"the file {file} has mode {mode:04o}: others can change it"


def test_a_folder_that_others_can_write_to_is_refused_sticky_or_not(home: Path) -> None:
    for mode in (0o770, 0o1777):
        place = folder(home / f"{mode:o}", mode)
        assert refused(place) == f"others can write to the file {place} (mode {mode:04o})"


def test_a_file_of_another_user_is_refused(home: Path, give_away: Callable[[Path], None]) -> None:
    file = a_file(home / "file")
    give_away(file)
    assert refused(file) == f"the file {file} belongs to uid {OTHER_UID}, not to uid {os.getuid()}"


@pytest.mark.parametrize("above", [1, 2, 3])
def test_a_file_below_a_folder_that_others_can_write_to_is_refused(home: Path, above: int) -> None:
    file = a_file(home / "a" / "b" / "c" / "file")
    place = file.parents[above - 1]
    place.chmod(0o775)
    assert refused(file) == (
        f"{place}, above the file, has mode 0775: others can replace what is in it"
    )


def test_a_file_below_a_folder_of_another_user_is_refused(
    home: Path, give_away: Callable[[Path], None]
) -> None:
    file = a_file(home / "theirs" / "b" / "file")
    give_away(home / "theirs")
    assert refused(file) == f"{home / 'theirs'}, above the file, belongs to uid {OTHER_UID}"


def test_a_file_of_another_user_in_a_sticky_folder_is_refused(
    home: Path, give_away: Callable[[Path], None]
) -> None:
    file = a_file(home / "tmp" / "file")
    (home / "tmp").chmod(0o1777)
    assert opened(file) == "content"
    give_away(file)
    assert "belongs to uid" in refused(file)


def test_a_link_that_leads_through_a_folder_that_others_can_write_to_is_refused(
    home: Path,
) -> None:
    a_file(home / "shared" / "real" / "file")
    (home / "file").symlink_to("shared/real/file")
    (home / "folder").symlink_to(home / "shared" / "real")
    (home / "shared").chmod(0o777)
    for path in (home / "file", home / "folder" / "file", home / "folder" / ".." / "x" / ".."):
        assert refused(path).startswith(f"{home / 'shared'}, above the file, has mode 0777")


def test_a_link_of_another_user_is_refused(home: Path, give_away: Callable[[Path], None]) -> None:
    a_file(home / "real")
    (home / "link").symlink_to("real")
    give_away(home / "link")
    assert refused(home / "link") == f"{home / 'link'}, above the file, belongs to uid {OTHER_UID}"


def test_links_without_end_are_an_error(home: Path) -> None:
    (home / "a").symlink_to("b")
    (home / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        paths.check_only_ours(str(home / "a"), "the file", instead="name another")


def test_what_others_may_write_to_by_an_acl_is_refused(home: Path) -> None:
    """POSIX ACLs show in the group's bits (acl(5), "Correspondence")."""
    place = folder(home / "a")
    a_file(place / "file")
    entries = [(1, 7, -1), (2, 7, OTHER_UID), (4, 0, -1), (0x10, 7, -1), (0x20, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(place, "system.posix_acl_access", acl)
    except OSError as e:
        pytest.skip(f"no ACLs on this file system: {e.strerror}")
    assert "has mode 0770" in refused(place / "file")


def test_what_was_swapped_between_check_and_opening_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = a_file(home / "file")
    real = os.open

    def swap_first(path: str, flags: int) -> int:
        file.unlink()
        a_file(file, 0o666)
        return real(path, flags)

    monkeypatch.setattr("os.open", swap_first)
    with pytest.raises(ConfigurationError, match="has mode 0666: others can change it"):
        opened(file)


def test_a_new_file_takes_the_place_of_a_link_and_leaves_what_that_leads_to(home: Path) -> None:
    file = a_file(home / "other")
    (home / "new").symlink_to(file)
    with open(paths.create(str(home / "new")), "w") as new:
        new.write("new")
    assert (file.read_text(), (home / "new").read_text()) == ("content", "new")
    assert stat.S_IMODE((home / "new").lstat().st_mode) == 0o600


# User namespaces: who isn't mapped there appears as the overflow uid

_IN_A_NAMESPACE = """
import os, sys
folder, file = sys.argv[1:]
sys.path.insert(0, os.path.dirname(folder))
from dpop_agent import paths, peer
from dpop_agent.errors import DPoPAgentError
def say(check):
    try:
        check()
    except DPoPAgentError as e:
        print(e.message)
    else:
        print("fine")
say(lambda: paths.check_socket_folder(folder + "/agent.sock", client=True))
say(lambda: paths.check_socket_folder(folder + "/agent.sock"))
say(lambda: paths.check_only_ours(file, "the file", instead=""))
say(lambda: peer.require_own_uid(peer.Peer(1, 65534, 0), what="it"))
say(lambda: peer.require_own_uid(peer.Peer(1, os.getuid(), 0), what="it"))
"""


def in_a_namespace(folder: Path, file: Path, *before: str, map_uid: bool = True) -> list[str]:
    """What a program of uid 54321 is told in a user namespace where nobody else is mapped."""
    mapped = [f"--map-user={OTHER_UID}", f"--map-group={OTHER_UID}"] if map_uid else []
    dropped = ["setpriv", f"--reuid={OTHER_UID}", f"--regid={OTHER_UID}", "--clear-groups"]
    python = [os.path.realpath(sys.executable), "-I", "-c", _IN_A_NAMESPACE]
    run = subprocess.run(
        [*dropped, "unshare", "--user", *mapped, *before, *python, folder, file],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return run.stdout.splitlines()


@pytest.fixture
def sandbox() -> Iterator[Path]:
    """A folder of ours that any user can go into, with the code beside it."""
    with tempfile.TemporaryDirectory(prefix="dpop-", dir="/tmp") as name:
        above = Path(name)
        above.chmod(0o755)
        shutil.copytree(Path(paths.__file__).parent, above / "dpop_agent")
        yield folder(above / "sandbox", 0o755)


as_root = pytest.mark.skipif(os.getuid() != 0, reason="to be another user takes root")


@as_root
def test_in_a_user_namespace_a_folder_of_root_is_fine_for_a_client_alone(sandbox: Path) -> None:
    client, server, file, _, own = in_a_namespace(sandbox, a_file(sandbox / "file", 0o644))
    assert (client, own) == ("fine", "fine")
    assert "belongs to uid 65534" in server
    assert "belongs to uid 65534" in file


@as_root
def test_in_a_user_namespace_a_listener_of_an_unmapped_uid_is_nobodys(sandbox: Path) -> None:
    *_, nobody, own = in_a_namespace(sandbox, sandbox, map_uid=False)
    assert nobody == own == "it runs as uid 65534, who is anybody in this user namespace"


@as_root
def test_in_a_user_namespace_a_folder_that_others_can_write_to_is_refused_even_for_a_client(
    sandbox: Path,
) -> None:
    sandbox.chmod(0o777)
    client, *_ = in_a_namespace(sandbox, sandbox)
    assert "has mode 0777: others can replace what is in it" in client


@as_root
def test_in_a_user_namespace_a_read_only_mount_of_root_is_fine(sandbox: Path) -> None:
    file = a_file(sandbox / "file", 0o644)
    read_only = 'mount --rbind / /mnt && mount -o remount,bind,ro /mnt && exec chroot /mnt "$@"'
    _, _, told, *_ = in_a_namespace(
        sandbox, file, "--mount", "--map-root-user", "sh", "-c", read_only, "sh", map_uid=False
    )
    assert told == "fine"


@as_root
def test_in_a_user_namespace_within_another_roots_folders_are_told_by_the_kernels_own(
    sandbox: Path,
) -> None:
    inner = [f"--map-user={OTHER_UID}", f"--map-group={OTHER_UID}"]
    client, server, *_, own = in_a_namespace(
        sandbox, sandbox, "--map-root-user", "unshare", "--user", *inner, map_uid=False
    )
    assert (client, own) == ("fine", "fine")
    assert "belongs to uid 65534" in server


def test_the_machines_own_namespace_has_no_overflow_uid() -> None:
    run = subprocess.run(
        ["cat", "/proc/self/uid_map"], check=True, capture_output=True, text=True, timeout=60
    )
    if run.stdout.split() != ["0", "0", "4294967295"]:
        pytest.skip("the tests run in a user namespace")
    assert not users.may_be_root(65534)


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
