"""The agent as a service, in words: units of systemd's, a property list of launchd's.

No directive is in the user's unit that fails there, or does nothing (systemd 252's user manager has
no privileges): ProtectSystem, ProtectHome, PrivateDevices, CapabilityBoundingSet and their like are
in the system's alone. `StateDirectory=` is too: for a user it would be below ~/.config.
"""

from __future__ import annotations

import os
import sys

from dpop_agent import paths
from dpop_agent.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from dpop_agent.config import Config, StoreConfig

SERVICE, SOCKET = "dpop-agent.service", "dpop-agent.socket"

USER = "dpop-agent"
"""Who runs the system's, and nothing else."""

SYSTEM_UNITS = "/etc/systemd/system"
POLKIT_RULE = "/etc/polkit-1/rules.d/50-dpop-agent.rules"
PLIST = "~/Library/LaunchAgents/io.github.dpop-agent.plist"

_LOCAL_MODULES = (
    "libsofthsm2.",
    "libykcs11.",
    "opensc-pkcs11.",
    "libtpm2_pkcs11.",
    "libsoftokn3.",
)
"""How modules begin that ask nobody but daemons of this machine, over Unix sockets: pcscd, and for
a TPM tpm2-abrmd, on the system's D-Bus. Others may talk to a network HSM."""

_CARD_MODULES = ("libykcs11.", "opensc-pkcs11.")
_TPM_MODULES = ("libtpm2_pkcs11.",)
_LOCAL_TCTI = ("", "device", "tabrmd", "libtss2-tcti-device", "libtss2-tcti-tabrmd")
"""The ways to a TPM that need no network (TPM2_PKCS11_TCTI, up to its colon)."""

_HARDENED = """\
NoNewPrivileges=yes
RestrictNamespaces=yes
MemoryDenyWriteExecute=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
LimitCORE=0
UMask=0077"""

_HARDENED_BY_THE_SYSTEM = """\
CapabilityBoundingSet=
ProtectSystem=full
ProtectHome=yes
ProtectHostname=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
PrivateTmp=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes"""

IDENTIFIER = "dpop-agent"
"""Who says what is in the journal."""

_STAYS_UP = f"""\
SyslogIdentifier={IDENTIFIER}
KillMode=mixed
TimeoutStopSec=10
Restart=on-failure
RestartSec=2"""


class Places:
    """Where an agent has what it works with.

    Attributes:
        config, state, socket: its configuration, its state folder, its `agent.sock`.
        python: the interpreter that has this package.
    """

    def __init__(self, *, config: str, state: str, socket: str) -> None:
        self.config, self.state, self.socket = config, state, socket
        self.python = sys.executable

    @property
    def credentials(self) -> str:
        """The folder of PINs that systemd reads, for `pin_source = "credential:NAME"`."""
        return os.path.join(os.path.dirname(self.config), "credentials")

    @property
    def command(self) -> list[str]:
        """`dpop-agent`; nothing is imported from the folder that it is started in (-P)."""
        return [self.python, "-P", "-m", "dpop_agent"]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DPOP_AGENT_CONFIG": self.config,
            "DPOP_AGENT_STATE_DIR": self.state,
            "DPOP_AGENT_SOCK": self.socket,
        }


def users_places() -> Places:
    """As this environment has them."""
    return Places(
        config=os.path.abspath(paths.config_file()),
        state=os.path.abspath(paths.state_folder()),
        socket=paths.agent_socket(),
    )


def systems_places() -> Places:
    """Of a machine's agent."""
    return Places(
        config="/etc/dpop-agent/config.toml",
        state=f"/var/lib/{paths.APP}",
        socket=f"/run/{paths.APP}/agent.sock",
    )


def credentials(config: Config) -> list[str]:
    """The names of the credentials that stores have their PINs from."""
    sources = [s.pin_source for s in config.stores.values() if s.pin_source is not None]
    return sorted({source.argument for source in sources if source.kind == "credential"})


def wants_pcscd(config: Config | None) -> bool:
    """Whether a store may be a card behind pcscd."""
    return config is None or any(
        _begins(store, _CARD_MODULES) or not _begins(store, _LOCAL_MODULES)
        for store in config.stores.values()
        if store.module is not None
    )


def users_service(config: Config, places: Places) -> str:
    """`dpop-agent.service` for the user's manager."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    is_usual = os.path.dirname(places.socket) == os.path.join(runtime, paths.APP)
    return f"""\
[Unit]
Description=Agent that keeps DPoP keys (RFC 9449)
Requires={SOCKET}
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
{_exec(places)}
{_STAYS_UP}
RestartPreventExitStatus=1
{_RUNTIME_FOLDER if is_usual else ""}\
{_loaded(config, places)}\

{_HARDENED}
RestrictAddressFamilies={families(config)}

[Install]
Also={SOCKET}
"""


def users_socket(places: Places) -> str:
    """`dpop-agent.socket`: what the user's manager listens at, and starts the agent for."""
    all_sockets = (
        places.socket,
        paths.admin_socket(places.socket),
        paths.mounted_socket(places.socket),
    )
    listens = "\n".join(map(listen_stream, all_sockets))
    return f"""\
[Unit]
Description=Sockets of the agent that keeps DPoP keys (RFC 9449)

[Socket]
{listens}
SocketMode=0600
DirectoryMode=0700
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""


def listen_stream(path: str) -> str:
    """The line of a socket unit by which systemd listens there."""
    if path != path.rstrip():
        raise _unfit(path)
    return f"ListenStream={_plain(path)}"


def systems_service(config: Config | None, places: Places) -> str:
    """`dpop-agent.service` for the machine's systemd; without a configuration, for any store."""
    modules = [] if config is None else [s for s in config.stores.values() if s.module is not None]
    has_tpm = any(_begins(store, _TPM_MODULES) for store in modules)
    needs_devices = config is None or any(
        _begins(store, _TPM_MODULES) or not _begins(store, _LOCAL_MODULES) for store in modules
    )
    return f"""\
[Unit]
Description=Agent that keeps DPoP keys (RFC 9449)
After=dbus.socket pcscd.socket tpm2-abrmd.service
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
User={USER}
Group={USER}
{f"SupplementaryGroups=tss{chr(10)}" if has_tpm else ""}\
{_exec(places)}
{_STAYS_UP}
{_RUNTIME_FOLDER}\
StateDirectory=dpop-agent
StateDirectoryMode=0700
{"" if config is None else _loaded(config, places)}\

{_HARDENED}
{_HARDENED_BY_THE_SYSTEM}
{"" if needs_devices else f"PrivateDevices=yes{chr(10)}"}\
RestrictAddressFamilies={families(config)}

[Install]
WantedBy=multi-user.target
"""


def polkit_rule() -> str:
    """What lets the system's agent use cards through pcscd, which asks polkit."""
    return f"""\
polkit.addRule(function(action, subject) {{
    if ((action.id == "org.debian.pcsc-lite.access_pcsc" ||
         action.id == "org.debian.pcsc-lite.access_card") && subject.user == "{USER}") {{
        return polkit.Result.YES;
    }}
}});
"""


def plist(places: Places) -> bytes:
    """A property list for launchd, which never ran on a Mac; the agent makes its sockets itself."""
    import plistlib

    log = os.path.expanduser("~/Library/Logs/dpop-agent.log")
    return plistlib.dumps(
        {
            "Label": os.path.basename(PLIST).removesuffix(".plist"),
            "ProgramArguments": [*places.command, "serve"],
            "EnvironmentVariables": places.environment,
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ExitTimeOut": 10,
            "Umask": 0o077,
            "ProcessType": "Adaptive",
            "StandardErrorPath": log,
        },
        sort_keys=False,
    )


def families(config: Config | None) -> str:
    """Which address families the stores need; a Unix socket is how everybody is talked to here."""
    stores: Iterable[StoreConfig] = () if config is None else config.stores.values()
    if config is not None and all(_is_local(store) for store in stores):
        return "AF_UNIX"
    return "AF_UNIX AF_INET AF_INET6 AF_NETLINK"  # names are looked up with netlink's help


def _is_local(store: StoreConfig) -> bool:
    if store.module is None:  # a keychain, on the session's D-Bus
        return True
    tcti = store.env.get("TPM2_PKCS11_TCTI", "").partition(":")[0]
    return _begins(store, _LOCAL_MODULES) and tcti.removesuffix(".so.0") in _LOCAL_TCTI


def _begins(store: StoreConfig, names: tuple[str, ...]) -> bool:
    return os.path.basename(store.module or "").startswith(names)


_RUNTIME_FOLDER = """\
RuntimeDirectory=dpop-agent
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
"""


def _exec(places: Places) -> str:
    program, *rest = places.command
    if "'" in program:
        raise _unfit(program)  # only there: systemd takes no program with quotes in its name
    ours = f':"{_plain(program)}" {" ".join(rest)}'  # : so that $ is itself too
    lines = [f"ExecStart={ours} serve", f"ExecReload={ours} reload"]
    lines += [f'Environment="{name}={_plain(v)}"' for name, v in places.environment.items()]
    return "\n".join(lines)


def _loaded(config: Config, places: Places) -> str:
    return "".join(
        f"LoadCredential={name}:{_plain(os.path.join(places.credentials, name))}\n"
        for name in credentials(config)
    )


def _plain(path: str) -> str:
    """A path as units take it: `%` begins a specifier; quotes and the like mean too many things."""
    if any(c in '\\"' or not c.isprintable() for c in path):
        raise _unfit(path)
    return path.replace("%", "%%")


def _unfit(path: str) -> ConfigurationError:
    return ConfigurationError(
        f"the path {path!r} has a character that can't be in a unit of systemd's",
        hint="use another path: without quotes, backslashes, control characters, or a blank at its "
        "end",
    )
