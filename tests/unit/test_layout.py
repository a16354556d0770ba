"""Which part may import which: what the processes hold follows from it."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import dpop_agent

ROOT = Path(dpop_agent.__file__).parent
PARTS = ("agent", "signer", "client", "cli")
MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages([str(ROOT)], "dpop_agent.", onerror=lambda _: None)
)
HEAVY = ("pkcs11", "keyring", "cryptography", "asn1crypto")


class Import(NamedTuple):
    name: str
    lazy: bool
    line: int


def source_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def part_of(module: str) -> str:
    """`agent`, `signer`, `client`, `cli`, or nothing for the top level."""
    second = module.split(".")[1] if "." in module else ""
    return second if second in PARTS else ""


def imports_of(module: str) -> list[Import]:
    """What a module imports while it runs; what only a type checker reads is left out."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for otherwise in node.orelse:
                visit(otherwise, lazy)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            assert node.module
            # `from dpop_agent import agent` names a module by its last word.
            found.append(Import(node.module, lazy, node.lineno))
            found.extend(
                Import(f"{node.module}.{alias.name}", lazy, node.lineno)
                for alias in node.names
                if node.module.split(".")[0] == "dpop_agent"
            )
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source_of(module).read_text("utf-8")), lazy=False)
    return found


def imported_by(module: str) -> set[str]:
    """This package's modules that a module imports, lazily or for a type checker too."""
    known = {"dpop_agent", *MODULES}
    found: set[str] = set()
    for node in ast.walk(ast.parse(source_of(module).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from dpop_agent import agent` imports a module, `from dpop_agent import x` a name.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in names}
    return found & known


def foreign(name: str) -> bool:
    return name.split(".")[0] not in sys.stdlib_module_names | {"dpop_agent"}


def test_every_source_file_is_walked() -> None:
    walked = {source_of(module) for module in MODULES} | {ROOT / "__init__.py"}
    assert walked == set(ROOT.rglob("*.py"))


# What each part may import beyond the standard library and this package; True: only in a function.
FOREIGN: dict[str, dict[str, bool]] = {
    "": {},
    "dpop_agent.paths": {"platformdirs": True},
    "dpop_agent.verify": {"cryptography": False},
    "agent": {},
    "dpop_agent.agent.server": {"uvloop": False},
    "signer": {},
    "dpop_agent.signer.jwk": {"cryptography": False},
    # What keyring loads, ssl and http among it, is no PKCS#11 signer's.
    "dpop_agent.signer.keychain.access": {"keyring": True, "secretstorage": True},
    "dpop_agent.signer.keychain.store": {"cryptography": False},
    "dpop_agent.signer.pkcs11.attributes": {"pkcs11": False, "cryptography": False},
    "dpop_agent.signer.pkcs11.discovery": {"pkcs11": False},
    "dpop_agent.signer.pkcs11.keys": {"pkcs11": False},
    "dpop_agent.signer.pkcs11.module": {"pkcs11": False},
    "dpop_agent.signer.pkcs11.slots": {"pkcs11": False, "cryptography": False},
    "dpop_agent.signer.pkcs11.signing": {"pkcs11": False},
    "dpop_agent.signer.pkcs11.store": {"pkcs11": False},
    "dpop_agent.signer.pkcs11.token": {"pkcs11": False},
    "dpop_agent.signer.pkcs11.vendors": {"cryptography": False},
    "client": {},
    "dpop_agent.client.aio": {"trio": True},
    "dpop_agent.client.grant": {"trio": True},
    "dpop_agent.client.stores": {"keyring": True, "trio": True},
    "dpop_agent.client.httpx": {"httpx": False},
    "dpop_agent.client.httpx2": {"httpx2": False},
    "dpop_agent.client.mcp": {"mcp": False, "httpx2": False},
    "dpop_agent.client.requests": {"requests": False, "urllib3": False},
    "dpop_agent.client.aiohttp": {"aiohttp": False, "yarl": False},
    "dpop_agent.client.requests_oauth2client": {
        "requests": False,
        "requests_oauth2client": False,
        "jwskate": False,
    },
    "cli": {"platformdirs": True},
    "dpop_agent.cli.completing": {"argcomplete": False},
    "dpop_agent.cli.setting": {"tomlkit": True},
}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_no_other_library_than_its_part_may(module: str) -> None:
    allowed = FOREIGN.get(module, FOREIGN[part_of(module)])
    for found in imports_of(module):
        if foreign(found.name):
            where = f"{module}:{found.line} imports {found.name}"
            library = found.name.split(".")[0]
            assert library in allowed, where
            assert found.lazy or not allowed[library], f"{where} outside of a function"


# Parts that the modules of a part may import; the top level is everybody's.
BELOW: dict[str, set[str]] = {
    "": set(),
    "agent": {"agent"},
    "signer": {"signer"},
    "client": {"client"},
    "cli": {"cli", "client"},
}

# What the command line does in the agent's place: serve, read a ledger without one, and look at
# what one finds at its start.
IN_THE_AGENTS_PLACE: dict[str, tuple[str, ...]] = {
    "dpop_agent.cli.serve": ("dpop_agent.agent", "dpop_agent.signer"),
    "dpop_agent.cli.ledger": ("dpop_agent.agent.ledger", "dpop_agent.agent.records"),
    "dpop_agent.cli.checks.leftovers": (
        *("dpop_agent.agent.ledger", "dpop_agent.agent.lines", "dpop_agent.agent.listener"),
    ),
    "dpop_agent.cli.checks.machine": ("dpop_agent.agent.descriptors", "dpop_agent.agent.ledger"),
    "dpop_agent.cli.live": ("dpop_agent.agent.lock",),
    "dpop_agent.cli.checks.running": (
        *("dpop_agent.agent.labels", "dpop_agent.agent.ledger", "dpop_agent.agent.lock"),
    ),
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    allowed = set(BELOW[part_of(module)])
    if module == "dpop_agent.__main__":
        allowed.add("cli")
    for found in imports_of(module):
        if not found.name.startswith("dpop_agent"):
            continue
        above = part_of(found.name)
        where = f"{module}:{found.line} imports {found.name}"
        if found.name.startswith(IN_THE_AGENTS_PLACE.get(module, ())):
            assert found.lazy, f"{where} outside of a function"
        else:
            assert not above or above in allowed, where


# Rooms of the same part that a room may import; a part in ROOMS is there with all its rooms.
ROOMS: dict[str, dict[str, set[str]]] = {
    "agent": {
        # Pure: values in, values out.
        "rules": set(),
        "rates": {"rules"},
        "keys": {"rules"},
        "uses": {"keys"},
        "drains": {"keys", "uses"},
        "policy": {"keys", "rules"},
        "slots": {"keys"},
        "nonces": set(),
        "frames": {"keys"},
        "queue": {"frames"},
        # What is remembered, and what stores are.
        "lines": set(),
        "filters": {"keys", "rules"},
        "forms": {"filters", "keys", "rules", "uses"},
        "blocks": {"keys", "forms", "lines"},
        "ledger": {"filters", "keys", "uses", "lines", "forms", "blocks", "lock"},
        "changes": {"keys", "rules"},
        "records": {"filters", "keys", "uses", "forms", "blocks", "ledger", "changes"},
        "excerpts": {"filters", "keys", "records", "rules", "uses"},
        "process": set(),
        "states": set(),
        "opening": set(),
        "forker": {"process"},
        "hosts": {"frames", "process", "queue"},
        "siblings": {"hosts", "opening", "queue"},
        "starting": {"frames", "hosts", "opening", "process"},
        "signers": {
            *("frames", "hosts", "opening", "process", "queue", "siblings", "starting", "states"),
        },
        "background": set(),
        "asking": set(),
        "consent": {"asking", "background", "keys", "queue", "records", "rules"},
        # Who asked for what.
        "programs": set(),
        "audit": {"keys"},
        "trails": {"audit", "programs", "records"},
        # What becomes of keys.
        "inventory": {"keys", "labels", "records", "signers", "background"},
        "labels": set(),
        "recovery": {"keys", "labels", "background", "inventory", "making", "records", "signers"},
        "making": {
            *("keys", "labels", "slots", "records", "signers", "starting", "background"),
            "inventory",
        },
        "upkeep": {"keys", "drains", "records", "background", "inventory", "making", "trails"},
        "lifecycle": {
            *("keys", "records", "signers", "starting", "background", "inventory", "making"),
        },
        # What the wire asks for.
        "telling": set(),
        "call": {"keys", "queue", "trails"},
        "trials": {"call", "queue"},
        "leases": {"background", "call", "queue", "records"},
        "views": {
            *("drains", "excerpts", "inventory", "keys", "nonces", "records", "signers", "uses"),
            "telling",
        },
        "proofs": {
            *("audit", "call", "consent", "drains", "excerpts", "filters", "frames", "inventory"),
            *("keys", "nonces", "policy", "queue", "rates", "records", "signers", "trails"),
            "trials",
        },
        "stores": {"background", "inventory", "keys", "records", "signers", "views"},
        "handler": {
            *("background", "call", "keys", "lifecycle", "proofs", "recovery", "sockets", "stores"),
            *("leases", "queue", "views"),
        },
        "intake": {"queue"},
        "connection": {"call", "intake", "queue", "telling", "trails"},
        "lock": set(),
        "listener": {"lock"},
        "acceptor": {"connection"},
        "sockets": {
            *("acceptor", "background", "call", "connection", "excerpts", "filters", "keys"),
            *("listener", "policy", "queue", "records", "rules"),
        },
        "descriptors": set(),
        "folders": set(),
        "terminal": set(),
        # All of them put together.
        "server": {
            *("acceptor", "asking", "background", "call", "connection", "consent", "descriptors"),
            *("excerpts", "filters", "folders", "forker", "handler", "rates", "sockets"),
            *(
                "intake",
                "inventory",
                "leases",
                "ledger",
                "lifecycle",
                "listener",
                "lock",
                "making",
                "nonces",
                "process",
            ),
            *(
                "proofs",
                "records",
                "recovery",
                "signers",
                "stores",
                "telling",
                "terminal",
                "trails",
            ),
            *("upkeep", "views"),
        },
    },
    "signer": {
        "secret_socket": set(),
        "authority": {"secret_socket"},
        "heritage": set(),
        "store": {"authority", "heritage"},
        "jwk": set(),
        "keychain.access": set(),
        "keychain.store": {"store", "jwk", "keychain.access"},
        "keychain.__main__": {"keychain.store"},
        "pin": {"secret_socket", "keychain.access"},
        "lock": set(),
        "brake": {"lock"},
        "pkcs11.pcsc": set(),
        "pkcs11.vendors": set(),
        "pkcs11.module": set(),
        "pkcs11.attributes": {"jwk", "pkcs11.module"},
        "pkcs11.discovery": {"brake", "pkcs11.module", "pkcs11.pcsc", "pkcs11.vendors"},
        "pkcs11.token": {
            *("pin", "brake", "pkcs11.module", "pkcs11.pcsc", "pkcs11.vendors"),
            *("heritage", "pkcs11.discovery"),
        },
        "pkcs11.signing": {"pkcs11.module"},
        "pkcs11.keys": {
            *("store", "pkcs11.module", "pkcs11.attributes", "pkcs11.signing", "pkcs11.token"),
        },
        "pkcs11.store": {
            *("store", "heritage"),
            "pkcs11.module",
            "pkcs11.attributes",
            "pkcs11.token",
            "pkcs11.keys",
        },
        "pkcs11.slots": {
            *("store", "authority"),
            *("pkcs11.vendors", "pkcs11.attributes", "pkcs11.token", "pkcs11.keys", "pkcs11.store"),
        },
        # Which store it is, and where its PIN comes from, it alone knows.
        "serving": {
            *("store", "authority", "heritage", "pin", "lock", "brake", "keychain.store"),
            *("pkcs11.module", "pkcs11.vendors", "pkcs11.discovery", "pkcs11.token"),
            *("pkcs11.store", "pkcs11.slots"),
        },
        "forking": {"serving"},
        "__main__": {"serving", "pin", "pkcs11.module", "pkcs11.discovery", "pkcs11.pcsc"},
    },
    "client": {
        "answers": set(),
        "connection": set(),
        "sync": {"answers", "connection"},
        "aio": {"answers", "connection", "sync"},
        "token": set(),
        # From here on HTTP; one library's face imports no other's.
        "refusal": set(),
        "hop": {"answers", "refusal"},
        "exchange": {"hop", "refusal"},
        "stores": {"exchange", "token"},
        "grant": {"hop", "refusal", "exchange", "stores", "token"},
        "proxies": set(),
        "httpx_core.names": set(),
        "httpx_core.bodies": {"refusal", "httpx_core.names"},
        "httpx_core.presented": {"hop", "grant", "token", "httpx_core.names", "httpx_core.bodies"},
        "httpx_core.sending": {
            *("hop", "refusal", "exchange"),
            *("httpx_core.names", "httpx_core.bodies", "httpx_core.presented"),
        },
        "httpx_core.transport": {
            *("hop", "exchange", "grant", "proxies", "httpx_core.names", "httpx_core.bodies"),
            *("httpx_core.presented", "httpx_core.sending"),
        },
        "httpx_core.auth": {
            *("refusal", "grant", "token"),
            *("httpx_core.names", "httpx_core.bodies", "httpx_core.presented"),
        },
        **{
            library: {
                *("exchange", "httpx_core.names", "httpx_core.bodies", "httpx_core.sending"),
                *("httpx_core.transport", "httpx_core.auth"),
            }
            for library in ("httpx", "httpx2")
        },
        "presenting": {"hop", "refusal", "exchange", "grant"},
        "aiohttp": {"hop", "refusal", "exchange", "grant", "presenting"},
        "requests": {"hop", "refusal", "exchange", "grant", "presenting"},
        # What the MCP SDK is shown, and by which metadata.
        "handles": {"token"},
        "discovered": {"hop", "refusal"},
        "mcp": {"answers", "discovered", "handles", "hop", "httpx2", "refusal", "token"},
        "requests_oauth2client": {"answers", "hop"},
        # What went wrong, pure but for the last one, which asks an agent.
        "explaining.messages": set(),
        "explaining.reading": {"explaining.messages"},
        "explaining.responses": {"explaining.messages"},
        "explaining.redaction": {"explaining.messages"},
        "explaining.case": {"refusal", "explaining.messages", "explaining.redaction"},
        "explaining.findings": set(),
        "explaining.said": {"explaining.case"},
        "explaining.urls": {"explaining.messages"},
        "explaining.judges.opinions": {
            *("explaining.case", "explaining.messages", "explaining.redaction"),
        },
        **{
            f"explaining.judges.{part}": {
                *("explaining.case", "explaining.messages", "explaining.redaction"),
                *("explaining.said", "explaining.urls", "explaining.judges.opinions"),
            }
            for part in ("proof", "request", "nonce", "access_token", "token_endpoint")
        },
        "explaining.judges.server": {
            *("explaining.case", "explaining.judges.opinions", "explaining.judges.proof"),
        },
        "explaining.judges.table": {
            *("explaining.case", "explaining.judges.opinions", "explaining.judges.proof"),
            *("explaining.judges.request", "explaining.judges.nonce", "explaining.judges.server"),
            *("explaining.judges.access_token", "explaining.judges.token_endpoint"),
        },
        "explaining.verdict": {
            *("explaining.case", "explaining.findings", "explaining.judges.opinions"),
            "explaining.judges.table",
            *("explaining.messages", "explaining.said"),
        },
        "explaining.asking": {
            *("explaining.case", "explaining.findings", "explaining.responses"),
            "explaining.verdict",
        },
    },
}


@pytest.mark.parametrize("part", ROOMS)
def test_a_room_imports_no_other_room_than_those_below_it(part: str) -> None:
    prefix = f"dpop_agent.{part}."
    inside = [module for module in MODULES if module.startswith(prefix)]
    packages = {module for module in inside if source_of(module).name == "__init__.py"}
    rooms = {module.removeprefix(prefix) for module in inside if module not in packages}
    assert rooms == set(ROOMS[part])
    for room in rooms:
        for found in imports_of(prefix + room):
            if found.name.startswith(prefix) and found.name not in packages:
                named = [r for r in rooms if f"{found.name}.".startswith(f"{prefix}{r}.")]
                where = f"{prefix}{room}:{found.line} imports {found.name}"
                assert max(named, key=len, default="?") in ROOMS[part][room], where


def test_no_import_goes_round_in_a_circle() -> None:
    with_lazy_ones = {module: imported_by(module) for module in ["dpop_agent", *MODULES]}
    graphlib.TopologicalSorter(with_lazy_ones).prepare()  # raises CycleError with the circle


def test_the_verifier_shares_no_code_with_the_builder() -> None:
    ours = {i.name for i in imports_of("dpop_agent.verify") if i.name.startswith("dpop_agent")}
    assert {name for name in ours if name.count(".") == 1} == {"dpop_agent.errors"}


def loaded_by(code: str) -> set[str]:
    """The modules that `code` loads into a bare interpreter, all libraries being in reach."""
    run = f"""
import json, sys
sys.path[:] = {[str(ROOT.parent), *sys.path]!r}
before = set(sys.modules)
try:
    {code}
finally:
    sys.stdout.write(chr(10) + json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", run],
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": "/nonexistent"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return set(json.loads(done.stdout.rpartition("\n")[2]))


def among(loaded: set[str], *names: str) -> set[str]:
    return {m for m in loaded if any(m == n or m.startswith(f"{n}.") for n in names)}


def of_part(part: str) -> list[str]:
    return [m for m in MODULES if part_of(m) == part and not m.endswith("__main__")]


def test_the_agent_process_loads_no_crypto_library_and_no_other_part() -> None:
    loaded = loaded_by(f"import {', '.join([*of_part('agent'), 'dpop_agent.cli.serve'])}")
    assert "dpop_agent.agent" in loaded
    assert not among(loaded, *HEAVY, "dpop_agent.verify", "dpop_agent.signer")


def test_the_signer_process_loads_no_policy_and_no_server() -> None:
    loaded = loaded_by(f"import {', '.join([*of_part('signer'), 'dpop_agent.signer.__main__'])}")
    assert "dpop_agent.signer" in loaded
    assert not among(loaded, "dpop_agent.agent", "dpop_agent.client", "dpop_agent.cli")
    assert not among(loaded, "asyncio", "ssl", "http", "socketserver")


# `pkcs11` and its like for what they are, the others for what their import costs at start-up.
TOO_MUCH_FOR_A_CLIENT = (
    *HEAVY,
    *("asyncio", "ssl", "httpx", "requests", "aiohttp", "requests_oauth2client", "argcomplete"),
    *("typing", "dataclasses", "pathlib", "platformdirs", "inspect", "logging", "urllib"),
    *("dpop_agent.agent", "dpop_agent.signer", "dpop_agent.cli", "dpop_agent.verify"),
)


def test_importing_the_client_loads_none_of_the_heavy_libraries() -> None:
    assert not among(loaded_by("import dpop_agent.client"), *TOO_MUCH_FOR_A_CLIENT)


def test_a_synchronous_client_loads_none_of_the_heavy_libraries() -> None:
    loaded = loaded_by("from dpop_agent.client import AgentClient; AgentClient(path='/x/a.sock')")
    assert "dpop_agent.client" in loaded
    assert not among(loaded, *TOO_MUCH_FOR_A_CLIENT)


def test_asking_for_a_proof_on_the_command_line_loads_none_of_the_heavy_libraries() -> None:
    loaded = loaded_by(
        "from dpop_agent.cli.main import main\n"
        "    raise SystemExit(main(['proof', 'GET', 'https://as.example/']))"
    )
    assert among(loaded, "dpop_agent.client"), "the client was asked"
    allowed = {"dpop_agent.cli"}
    assert not among(loaded, *(m for m in TOO_MUCH_FOR_A_CLIENT if m not in allowed))


def test_every_public_name_of_the_client_is_there() -> None:
    code = "import dpop_agent.client as c; print(all(hasattr(c, n) for n in c.__all__), *c.__all__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer, *names = done.stdout.split()
    assert answer == "True"
    assert set(names) >= {"AgentClient", "AsyncAgentClient", "BoundToken"}
