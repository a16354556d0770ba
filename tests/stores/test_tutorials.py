"""What the tutorials with hardware say is typed as it stands there, with emulated hardware."""

from __future__ import annotations

import json
import tempfile
import tomllib
from itertools import groupby
from pathlib import Path

import pytest

from tests.documents import Block
from tests.emulators import YUBIKEY, YubiKey, need, yubikey
from tests.newcomer import BUILD, wheels
from tests.piv_card import TouchPolicy
from tests.reader import follow
from tests.stores.test_yubikey import FACTORY_KEY
from tests.system_manager import SystemManager, system_manager
from tests.user_manager import HOME, UserManager, user_manager

UNITS = "/etc/systemd/system"
CONFIG = f"{HOME}/.config/dpop-agent/config.toml"
"""What a laptop here is furnished with, for a PKCS#11 token of SoftHSM2."""


def plug(laptop: UserManager, key: YubiKey) -> None:
    """Have the laptop's pcscd be the one with this YubiKey, whose management key is noted."""
    key.card.management_key = bytes.fromhex(FACTORY_KEY)
    laptop.bind(Path(key.token.env["PCSCLITE_CSOCK_NAME"]).parent, "/run/pcscd")


@pytest.mark.runs("docs/tutorials/laptop-with-yubikey.md")
def test_the_tutorial_leads_from_a_new_yubikey_to_a_service_that_signs_and_back(
    blocks: list[Block],
) -> None:
    need(*YUBIKEY)
    with user_manager() as laptop, yubikey() as key:
        laptop.run("rm", CONFIG)
        plug(laptop, key)
        asked = {
            r"PIN of the store \S+: ": key.card.pin,
            r"Management key of the store [^\n]*: ": FACTORY_KEY,
            r"Type yes: ": "yes",
        }
        with laptop.terminal() as shell:
            for heading, below in groupby(blocks, key=lambda block: block.heading):
                if heading == "A touch for each proof":
                    key.card.make_key(0x9A, touch=TouchPolicy.ALWAYS)
                    key.card.touch_s = 1.0
                if heading == "Pull it out":
                    key.pull()
                if heading == "Plug it in again":
                    key.plug()
                follow(shell, below, asked)
            assert key.card.pin not in shell.shown
            assert FACTORY_KEY not in shell.shown
        assert not laptop.exists(f"{HOME}/.config/dpop-agent")


@pytest.mark.runs("docs/tutorials/server-with-hsm.md")
def test_the_tutorial_leads_from_a_new_server_to_a_service_that_signs_by_an_hsm_and_back(
    blocks: list[Block],
) -> None:
    with tempfile.TemporaryDirectory(prefix="wheels-", dir="/tmp") as wheelhouse:
        wheels(Path(wheelhouse), "dpop-agent", *BUILD)
        env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheelhouse, "PIP_NO_CACHE_DIR": "1"}
        with system_manager(**env) as server, server.terminal() as shell:
            for block in blocks:
                if block.language == "ini":
                    server.write(f"{UNITS}/report.service", block.text)
                else:
                    server.run("journalctl", "--sync")  # nobody's hands are faster than it
                    follow(shell, [block], {r"PIN of the HSM [^\n>]*": "73195"})
                if "socket add report" in block.text:
                    assert seen_by_the_unit(server, blocks) == "agent.sock\n"
            assert "report.service" not in server.run("ls", UNITS).stdout


def seen_by_the_unit(server: SystemManager, blocks: list[Block]) -> str:
    """What a service whose unit is like the tutorial's finds in the agent's place."""
    (unit,) = [block.text for block in blocks if block.language == "ini"]
    lists = "StandardOutput=file:/run/seen\nExecStart=/bin/ls /run/dpop-agent\n"
    server.write("/run/systemd/system/seen.service", unit[: unit.index("ExecStart=")] + lists)
    server.run("systemctl", "start", "seen")
    return server.run("cat", "/run/seen").stdout


@pytest.mark.runs("docs/lost-keys.md")
def test_a_lost_yubikey_is_blocked_and_replaced_by_another_and_a_second_key_stands_by(
    blocks: list[Block],
) -> None:
    need(*YUBIKEY)
    with user_manager() as laptop, yubikey() as lost, yubikey() as new:
        asked = {r"Management key of the store [^\n]*: ": FACTORY_KEY, r"Type yes: ": "yes"}
        spare = tomllib.loads(laptop.read(CONFIG))["stores"]["softhsm"]
        laptop.run("rm", CONFIG)
        plug(laptop, lost)
        with laptop.terminal() as shell:
            asked[r"PIN of the store yubikey: "] = lost.card.pin
            follow(shell, begin(), asked)
            lost.pull()
            for block in blocks:
                text = block.text.replace("76311902", str(new.card.serial))
                if "init --dry-run" in text:
                    plug(laptop, new)
                    asked[r"PIN of the store yubikey: "] = new.card.pin
                if block.language == "toml":
                    # One pcscd with two cards isn't to be had here.
                    found = tomllib.loads(text)["stores"]["backup"]
                    assert found | {"module": "", "uri": ""} == {
                        "type": "pkcs11",
                        "module": "",
                        "uri": "",
                        "pin_source": "prompt",
                    }
                    text = text.replace(found["module"], spare["module"])
                    text = text.replace(found["uri"], spare["uri"])
                    text += f"env = {{ SOFTHSM2_CONF = '{spare['env']['SOFTHSM2_CONF']}' }}\n"
                    laptop.write(CONFIG, laptop.read(CONFIG) + text)
                    pin_file = spare["pin_source"].removeprefix("file:")
                    asked[r"PIN of the store backup: "] = laptop.read(pin_file).strip()
                else:
                    follow(shell, [block._replace(text=text)], asked)
        listed = json.loads(laptop.agent("key", "list", "--json").stdout)["keys"]
        assert {key["key"]: key["generations"][-1]["state"] for key in listed} == {
            "api": "active",
            "api-backup": "active",
        }


def begin() -> list[Block]:
    """What somebody did long before: a key that signed once."""
    typed = (
        "dpop-agent init",
        "dpop-agent service install",
        "dpop-agent unlock",
        "dpop-agent key create api --origin https://api.example.com",
        "dpop-agent proof GET https://api.example.com/v1/me --key api",
    )
    return [Block("", "", 0, "sh", "".join(f"{line}\n" for line in typed), None)]
