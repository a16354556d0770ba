"""The real software of keychains, TPMs and YubiKeys, over emulated hardware, in private folders.

Nothing of the machine is touched and nothing of it is used: neither its D-Bus, nor its pcscd, nor
what is plugged in. Each emulator ends with whoever started it, and several may run at once.
"""

from __future__ import annotations

import glob
import json
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.piv_card import Card
from tests.processes import ROOT, START_S, Token, end

OPENSC = ("opensc-pkcs11",)
P11KIT = ("libp11-kit0", "p11-kit-modules")
NSS = ("libnss3", "libnss3-tools")
KEYRING = ("dbus-daemon", "gnome-keyring", "libsecret-tools")
TPM = (
    *("dbus-daemon", "libtpm2-pkcs11-1", "libtpm2-pkcs11-tools", "libtss2-tcti-swtpm0"),
    *("libtss2-tcti-tabrmd0", "swtpm", "tpm2-abrmd", "tpm2-tools"),
)
YUBIKEY = ("gcc", "libc6-dev", "pcscd", "vsmartcard-vpcd", "ykcs11")

_FILES: dict[str, str] = dict(
    line.split()[:2]
    for line in (ROOT / "tests" / "packages").read_text().splitlines()
    if not line.startswith("#")
)


def need(*packages: str) -> None:
    """Skip the test where one of Debian's packages, as in `tests/packages`, isn't there."""
    if lacking := missing(*packages):
        pytest.skip(f"not here: {' '.join(lacking)}")


def missing(*packages: str) -> list[str]:
    """Those of Debian's packages, as in `tests/packages`, that aren't there."""
    return [package for package in packages if not glob.glob(_FILES[package])]


def file_of(package: str) -> str:
    """The file that `tests/packages` knows a package by."""
    return glob.glob(_FILES[package])[0]


def built(source: str, folder: Path) -> Path:
    """A shared object of one of the tests' own C files, in a folder."""
    path = folder / Path(source).with_suffix(".so")
    words = ("-shared", "-fPIC", "-Wall", "-Werror", "-o", path, ROOT / "tests" / source)
    subprocess.run(["gcc", *words], check=True)
    return path


# As dbus-daemon's own session.conf, but it starts no service of the machine's by itself.
_BUS_CONFIG = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
    {more}
  </policy>
</busconfig>
"""


class _NotStarted(AssertionError):
    """A process ended, or wasn't ready in time."""


def _folder(name: str) -> tempfile.TemporaryDirectory[str]:
    # Not below tmp_path: a socket's path has at most 107 bytes.
    return tempfile.TemporaryDirectory(prefix=f"dpop-{name}-", dir="/tmp")


def _until(ready: Callable[[], Any], process: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not ready() or process.poll() is not None:  # somebody else may listen at its port
        if process.poll() is not None or time.monotonic() > deadline:
            raise _NotStarted(f"{process.args!r}: {log.read_text(errors='replace')}")
        time.sleep(0.02)


@contextmanager
def _running(
    command: Iterable[str | Path], *, log: Path, stdin: int | None = None, **settings: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, or with this process, however that ends."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=file,
            stderr=file,
            **settings,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)  # a frozen one hears nothing else
        end(process)


def _free_ports() -> int:
    """A port of 127.0.0.1 that is free, and so is the next."""
    while True:
        with socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                next_one.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port


@contextmanager
def _bus(folder: Path) -> Iterator[str]:
    """A D-Bus of its own; its address."""
    path, config, log = folder / "bus", folder / "bus.conf", folder / "bus.log"
    config.write_text(_BUS_CONFIG.format(socket=path, more=""))
    command = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nosyslog"]

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(path)) == 0

    with _running(command, log=log) as process:
        _until(listens, process, log)
        yield f"unix:path={path}"


class Keyring:
    """gnome-keyring on a D-Bus of its own, with one keyring, `login`, unlocked.

    Attributes:
        env: the variables that a process needs to see it, as an agent's `env`.
    """

    _PASSWORD = "a test's own"

    def __init__(self, folder: Path, address: str, process: subprocess.Popen[bytes]) -> None:
        self.env = {"DBUS_SESSION_BUS_ADDRESS": address}
        self._folder = folder
        self._process = process

    def lock(self) -> None:
        """Lock the keyring, as its owner does by hand or by the clock."""
        with self._collection() as collection:
            collection.lock()
            assert collection.is_locked()

    def unlock(self) -> None:
        """Unlock it without a prompt, as the login does."""
        from jeepney import DBusAddress, new_method_call
        from secretstorage.util import format_secret, open_session

        gnome = DBusAddress(
            "/org/freedesktop/secrets",
            bus_name="org.freedesktop.secrets",
            interface="org.gnome.keyring.InternalUnsupportedGuiltRiddenInterface",
        )
        with self._collection() as collection:
            session = open_session(collection.connection)
            secret = format_secret(session, self._PASSWORD.encode(), "text/plain")
            arguments = (collection.collection_path, secret)
            collection.connection.send_and_get_reply(
                new_method_call(gnome, "UnlockWithMasterPassword", "o(oayays)", arguments)
            )
            assert not collection.is_locked()

    def unlocked(self) -> bool:
        """Whether it is there and unlocked."""
        import secretstorage

        try:
            with self._collection() as collection:
                return not collection.is_locked()
        except secretstorage.exceptions.SecretStorageException:
            return False

    def freeze(self) -> None:
        """From here on it answers nothing and refuses nothing, until `thaw`."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        self._process.send_signal(signal.SIGCONT)

    def forbid_deleting(self) -> None:
        """From here on no program may delete an item."""
        from jeepney import DBusAddress, new_method_call

        deny = '<deny send_interface="org.freedesktop.Secret.Item" send_member="Delete"/>'
        text = _BUS_CONFIG.format(socket=self._folder / "bus", more=deny)
        (self._folder / "bus.conf").write_text(text)
        bus = DBusAddress("/", bus_name="org.freedesktop.DBus", interface="org.freedesktop.DBus")
        with self._collection() as collection:
            collection.connection.send_and_get_reply(new_method_call(bus, "ReloadConfig"))

    @contextmanager
    def _collection(self) -> Iterator[Any]:
        import secretstorage
        from jeepney.io.blocking import open_dbus_connection

        with open_dbus_connection(self.env["DBUS_SESSION_BUS_ADDRESS"]) as connection:
            yield secretstorage.Collection(connection)


@contextmanager
def keyring() -> Iterator[Keyring]:
    """A new gnome-keyring."""
    with _folder("keyring") as name, _bus(Path(name)) as address:
        folder, log = Path(name), Path(name) / "keyring.log"
        env = {
            **{k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")},
            "DBUS_SESSION_BUS_ADDRESS": address,
            "XDG_DATA_HOME": str(folder / "data"),
            "XDG_RUNTIME_DIR": str(folder),
        }
        command = ["gnome-keyring-daemon", "--foreground", "--unlock", "--components=secrets"]
        command += ["--control-directory", str(folder)]
        with tempfile.TemporaryFile() as password:
            password.write(Keyring._PASSWORD.encode())
            password.seek(0)
            running = _running(command, log=log, stdin=password.fileno(), env=env)
            with running as process:
                keyring = Keyring(folder, address, process)
                _until(keyring.unlocked, process, log)
                yield keyring


def _token(
    folder: Path,
    label: str,
    *,
    store: str,
    module: str,
    module_args: str = "",
    uri: str,
    pin: str,
    env: dict[str, str],
) -> Token:
    """Its PIN in a file, and the configuration that names both."""
    token = Token(folder, label)
    token.pin_file.touch(mode=0o600)
    token.pin_file.write_text(f"{pin}\n")
    variables = ", ".join(f"{name} = {json.dumps(value)}" for name, value in env.items())
    token.config.write_text(
        f"""\
[agent]
default_store = "{store}"

[stores.{store}]
type = "pkcs11"
module = {json.dumps(module)}
module_args = {json.dumps(module_args)}
uri = {json.dumps(uri)}
pin_source = {json.dumps(f"file:{token.pin_file}")}
env = {{ {variables} }}
"""
    )
    return token


def nss(folder: Path) -> Token:
    """A new database of NSS, `folder/db`, which its softoken makes a PKCS#11 token of."""
    label, database = "NSS Certificate DB", folder / "db"
    database.mkdir(parents=True)
    token = _token(
        folder,
        label,
        store="nss",
        module=file_of("libnss3"),
        module_args=f"configdir='sql:{database}'",
        uri=f"pkcs11:token={label.replace(' ', '%20')}",
        pin=secrets.token_hex(8),
        env={},
    )
    certutil(token, "-N")
    return token


def certutil(token: Token, *words: str | Path) -> str:
    """What NSS's own tool says of its database."""
    return subprocess.run(
        ["certutil", "-d", f"sql:{token.folder / 'db'}", "-f", token.pin_file, *words],
        check=True,
        timeout=START_S,
        capture_output=True,
        text=True,
    ).stdout


class Tpm:
    """A TPM 2.0 by swtpm behind tpm2-abrmd, and a PKCS#11 token in it by tpm2-pkcs11.

    Attributes:
        token: the PKCS#11 token, its PIN and its configuration.
    """

    LABEL = "tpm"

    def __init__(self, folder: Path, address: str, like: Tpm | None) -> None:
        self._folder = folder
        self._state, self._store = folder / "state", folder / "store"
        if like is None:
            self._state.mkdir()
            self._store.mkdir()
        else:
            shutil.copytree(like._state, self._state)
            shutil.copytree(like._store, self._store)
        self._env = {
            "DBUS_SESSION_BUS_ADDRESS": address,
            "TPM2_PKCS11_STORE": str(self._store),
            "TPM2_PKCS11_TCTI": "tabrmd:bus_type=session",
        }
        self._port = 0
        self._processes = ExitStack()
        self.start()
        try:
            self.token: Token = self._token(self._new_pin() if like is None else like.token.pin)
        except BaseException:
            self.stop()
            raise

    def start(self) -> None:
        """Switch it on, again too: its keys are still there."""
        for attempt in range(5):  # somebody else may take the ports in between
            try:
                self._start()
            except _NotStarted:
                self._processes.close()
                if attempt == 4:
                    raise
            else:
                return

    def stop(self) -> None:
        """Switch it off in good order; otherwise a TPM counts that as a wrong PIN."""
        if self._port:
            self._tool("tpm2_shutdown", "--clear", tcti=self._tcti)
        self._port = 0
        self._processes.close()

    def wrong_pins(self) -> int:
        """How many wrong PINs it counts; at three it is locked."""
        for line in self._tool("tpm2_getcap", "properties-variable").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "TPM2_PT_LOCKOUT_COUNTER":
                return int(value, 16)
        raise AssertionError("a TPM without a lockout counter")

    def forget_wrong_pins(self) -> None:
        """Count from zero again, as the TPM's owner can."""
        self._tool("tpm2_dictionarylockout", "--clear-lockout")

    def _start(self) -> None:
        port = _free_ports()
        self._port = 0
        self._tcti = f"swtpm:host=127.0.0.1,port={port}"
        log = self._folder / "log"
        command = ["swtpm", "socket", "--tpm2", "--flags", "not-need-init,startup-clear"]
        command += ["--tpmstate", f"dir={self._state}"]
        command += ["--server", f"type=tcp,port={port}", "--ctrl", f"type=tcp,port={port + 1}"]
        swtpm = self._processes.enter_context(_running(command, log=log))
        _until(lambda: _listens(port + 1), swtpm, log)
        self._port = port
        # Without it tpm2-pkcs11 soon fills a TPM's few places for loaded keys.
        command = [file_of("tpm2-abrmd"), "--session", f"--tcti={self._tcti}"]
        if os.geteuid() == 0:
            command.append("--allow-root")
        env = {**os.environ, **self._env}
        abrmd = self._processes.enter_context(_running(command, log=log, env=env))
        _until(self._answers, abrmd, log)

    def _answers(self) -> bool:
        try:
            return bool(self._tool("tpm2_getcap", "properties-fixed"))
        except subprocess.CalledProcessError:
            return False

    def _tool(self, *command: str, tcti: str = "tabrmd:bus_type=session") -> str:
        return subprocess.run(
            command,
            env={**os.environ, **self._env, "TPM2TOOLS_TCTI": tcti, "TSS2_LOG": "all+none"},
            check=True,
            timeout=START_S,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ).stdout

    def _new_pin(self) -> str:
        pin = secrets.token_hex(8)
        self._tool("tpm2_ptool", "init")
        # It takes PINs from its arguments alone; this one is of no use to anybody.
        self._tool(
            *("tpm2_ptool", "addtoken", "--pid=1", f"--label={self.LABEL}"),
            *(f"--userpin={pin}", f"--sopin={secrets.token_hex(8)}"),
        )
        return pin

    def _token(self, pin: str) -> Token:
        return _token(
            self._folder,
            self.LABEL,
            store="tpm",
            module=file_of("libtpm2-pkcs11-1"),
            uri=f"pkcs11:token={self.LABEL}",  # every TPM's serial is zeros there
            pin=pin,
            env=self._env,
        )


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def tpm(like: Tpm | None = None) -> Iterator[Tpm]:
    """A new TPM with a new PKCS#11 token, or a copy of one that is off, which is made faster."""
    with _folder("tpm") as name, _bus(Path(name)) as address:
        found = Tpm(Path(name), address, like)
        try:
            yield found
        finally:
            found.stop()


_READER = """\
FRIENDLYNAME "Yubico YubiKey Emulated PIV"
DEVICENAME /dev/null:0x{port:04X}
LIBPATH {driver}
CHANNELID 0x{port:04X}
"""

# pcscd's folder is compiled in: it gets a view of the file system of its own, in which that is
# ours. There it has no drivers either, so that it leaves the machine's readers alone.
_PCSCD = """\
mount -t tmpfs tmpfs /run
mkdir /run/pcscd
mount --bind "$1/run" /run/pcscd
mount --bind "$1/none" /usr/lib/pcsc/drivers
export LD_PRELOAD="$1/loopback.so"
exec setpriv --pdeathsig KILL "$2" --foreground --info --config "$1/readers"
"""


class YubiKey:
    """An emulated YubiKey in a reader of a pcscd of its own, for Yubico's own module.

    Attributes:
        card: the card: its PIN tries, its keys, how long until somebody touches it.
        token: the PKCS#11 token that `libykcs11` makes of it, its PIN and its configuration.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "log"
        self._port = 0
        self._pcscd = ExitStack()
        for name in ("run", "none", "readers"):
            (folder / name).mkdir()
        # Out of the folder that pcscd doesn't see.
        shutil.copy(file_of("vsmartcard-vpcd"), folder / "driver.so")
        built("loopback.c", folder)
        self.card = Card(pin=f"{secrets.randbelow(10**6):06}")
        self.start_pcscd()
        self.token = _token(
            folder,
            f"YubiKey PIV #{self.card.serial}",
            store="yubikey",
            module=file_of("ykcs11"),
            uri=f"pkcs11:serial={self.card.serial}",
            pin=self.card.pin,
            env={"PCSCLITE_CSOCK_NAME": str(folder / "run" / "pcscd.comm")},
        )

    def plug(self) -> None:
        """Put it into the reader; returns when pcscd has noticed, in at most 0.4 s."""
        with self._noticed("Card ATR"):
            self.card.plug(self._port)

    def pull(self) -> None:
        """Take it out, in the middle of whatever it does; returns when pcscd has noticed.

        pcscd looks each 0.4 s. Of a card that was away for less it may believe for ever that it
        isn't there; nobody's hand is as fast.
        """
        with self._noticed("Card Removed"):
            self.card.pull()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Another program has it for itself alone, as soon as nobody else uses it."""
        with subprocess.Popen(
            [sys.executable, "-m", "tests.card_program", "hold"],
            cwd=ROOT,
            env={**os.environ, **self.token.env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            try:
                ready, _, _ = select.select([process.stdout], [], [], START_S)
                assert ready, "somebody uses the card all the time"
                assert process.stdout.read(4) == b"held"
                yield
            finally:
                end(process)

    def disturb(self, what: str) -> None:
        """Another program comes and goes: `reset`, `log-out` or `select`, as tests/card_program.py
        has them.
        """
        subprocess.run(
            [sys.executable, "-m", "tests.card_program", what],
            cwd=ROOT,
            env={**os.environ, **self.token.env},
            check=True,
            timeout=START_S,
        )

    def start_pcscd(self) -> None:
        """Start pcscd and put the card into its reader."""
        for attempt in range(5):  # somebody else may take the ports in between
            try:
                self._start_pcscd()
            except _NotStarted:
                self._pcscd.close()
                if attempt == 4:
                    raise
            else:
                return

    def stop_pcscd(self) -> None:
        """End pcscd; its readers are gone with it."""
        self.card.pull()
        self._pcscd.close()

    def _start_pcscd(self) -> None:
        self._port = _free_ports()  # vpcd's readers have two slots, and a port for each
        (self._folder / "readers" / "reader").write_text(
            _READER.format(port=self._port, driver=self._folder / "driver.so")
        )
        as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        command = ["unshare", "--mount", *as_root, "sh", "-ec", _PCSCD]
        command += ["sh", str(self._folder), file_of("pcscd")]
        self._process = self._pcscd.enter_context(_running(command, log=self._log))
        with self._noticed("Card ATR"):
            _until(self._put_in, self._process, self._log)

    def _put_in(self) -> bool:
        try:
            self.card.plug(self._port)
        except ConnectionRefusedError:
            return False
        return True

    @contextmanager
    def _noticed(self, what: str) -> Iterator[None]:
        """Wait after the block until pcscd has logged that."""
        before = len(self._log.read_bytes())
        yield
        _until(lambda: what.encode() in self._log.read_bytes()[before:], self._process, self._log)


@contextmanager
def yubikey() -> Iterator[YubiKey]:
    """A new YubiKey, in its reader."""
    with _folder("yubikey") as name:
        found = YubiKey(Path(name))
        try:
            yield found
        finally:
            found.stop_pcscd()
