"""docs/reference is what the program has: settings, errors, verbs, exit statuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpop_agent import config, errors
from dpop_agent.cli import main as cli
from tests.agent import test_protocol_md
from tests.docs import verbs
from tests.documents import Block, parsed
from tests.processes import ROOT

REFERENCE = ROOT / "docs" / "reference"
NEVER_SENT = "Never sent by the agent."


def tables(page: str) -> dict[str, list[list[str]]]:
    """The rows of the tables below each heading, as they are written."""
    found: dict[str, list[list[str]]] = {}
    heading, head = "", False
    tokens = parsed((REFERENCE / page).read_text("utf-8"))
    for here, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = tokens[here + 1].content
        elif token.type in ("thead_open", "thead_close"):
            head = token.type == "thead_open"
        elif token.type == "tr_open" and not head:
            found.setdefault(heading, []).append([])
        elif token.type == "inline" and not head and tokens[here - 1].type == "td_open":
            found[heading][-1].append(token.content)
    return found


def code(text: str) -> str:
    (found,) = re.findall(r"^`([^`]+)`$", text)
    return str(found)


SETTINGS = {
    "`[agent]`": config.AGENT,
    "`[stores.NAME]` of type `pkcs11`": config.SETTINGS_BY_TYPE["pkcs11"],
    "`[stores.NAME]` of type `keychain`": config.SETTINGS_BY_TYPE["keychain"],
}


def settings(heading: str) -> list[list[str]]:
    return [row for row in tables("configuration.md")[heading] if len(row) == 3]


@pytest.mark.parametrize("heading", SETTINGS)
def test_every_setting_is_in_the_reference(heading: str) -> None:
    assert {code(name) for name, _, _ in settings(heading)} == set(SETTINGS[heading])


WHOLE = """
[agent]
{agent}
[stores.work]
type = "pkcs11"
module = "/usr/lib/softhsm/libsofthsm2.so"
uri = "pkcs11:token=work"
pin_source = "prompt"
{pkcs11}
"""


@pytest.mark.parametrize(
    ("heading", "row"),
    [(heading, row) for heading in list(SETTINGS)[:2] for row in settings(heading)],
)
def test_a_setting_without_which_nothing_changes_is_its_default(
    heading: str, row: list[str]
) -> None:
    name, default, _ = row
    places = {"agent": "", "pkcs11": ""}
    plain = WHOLE.format(**places)
    if default == "required":
        without = re.sub(rf"^{code(name)} = .*\n", "", plain, flags=re.M)
        with pytest.raises(errors.ConfigurationError, match=f"{code(name)} is missing"):
            config.parse(without, "config.toml")
    elif default.startswith("`"):
        places["agent" if "agent" in heading else "pkcs11"] = f"{code(name)} = {code(default)}"
        said = config.parse(WHOLE.format(**places), "config.toml")
        assert said == config.parse(plain, "config.toml")


def test_the_bounds_of_numbers_are_those_of_the_program() -> None:
    text = " ".join(" ".join(row) for rows in tables("configuration.md").values() for row in rows)
    for least, most in (
        (1, config.MAX_CONNECTIONS),
        (config.LEAST_WAITING, config.MOST_WAITING),
        (1, config.MAX_AUDIT_MIB),
    ):
        assert f"{least} to {most:,}".replace(",", " ") in text
    assert f"{config.MAX_LOGIN_RETRIES} at most" in text
    assert f"{config.MAX_SIGNERS} at most" in text
    assert all(f"`{backend}`" in text for backend in config.BACKENDS)


@pytest.mark.runs("docs/reference/configuration.md")
def test_the_whole_configuration_of_the_reference_is_one(
    tmp_path: Path, blocks: list[Block]
) -> None:
    (block,) = blocks
    path = tmp_path / "config.toml"
    path.write_text(block.text)
    path.chmod(0o600)
    assert list(config.load(str(path)).stores) == ["work", "keychain"]
    documented = {name for name in config.AGENT if re.search(rf"^{name} = ", block.text, re.M)}
    assert documented == set(config.AGENT)


def test_every_error_is_in_the_reference_as_the_program_has_it() -> None:
    page = (REFERENCE / "errors.md").read_text("utf-8")
    parts = re.split(r"^### `(\w+)`$", page, flags=re.M)[1:]
    said = {
        (type_, *again, NEVER_SENT in text)
        for type_, text in zip(parts[::2], parts[1::2], strict=True)
        for again in re.findall(r"^Again: (\w+)\. In Python: `(\w+)`\.", text, re.M)
    }
    assert said == {
        (type_, cls.default_retry, cls.__name__, cls in test_protocol_md.NEVER_SENT)
        for type_, cls in errors._BY_TYPE.items()
    }


def test_every_verb_and_option_is_in_the_reference() -> None:
    assert verbs.PAGE.read_text("utf-8") == verbs.page(), "run: python -m tests.docs.verbs"


def test_every_exit_status_and_variable_is_in_the_reference() -> None:
    found = tables("environment.md")
    statuses = {cli.DONE, cli.FAILED, cli.USAGE, cli.NO_AGENT, cli.INTERRUPTED}
    assert {int(status) for status, _ in found["Exit status"]} == statuses
    source = "".join(path.read_text() for path in (ROOT / "dpop_agent").rglob("*.py"))
    used = set(re.findall(r"DPOP_AGENT_[A-Z_]+", source))
    assert {code(name) for name, _, _ in found["Variables"]} == used
