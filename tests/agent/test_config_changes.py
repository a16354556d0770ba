"""`config set` and `config edit` beside an agent that runs, and at a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from dpop_agent import config
from tests.agent.places import until_open
from tests.processes import Agent, Token
from tests.terminal import Terminal


def edits(agent: Agent, folder: Path, *scripts: str) -> dict[str, str]:
    """The environment of one whose editor is these scripts of a shell, one after the other."""
    copies = folder / "copies"
    copies.mkdir(mode=0o700, exist_ok=True)
    for number, script in enumerate(scripts, 1):
        (folder / f"edit.{number}").write_text(script)
    editor = folder / "editor"
    editor.write_text(
        f'cd {shlex.quote(str(folder))}\nset -- edit.* "$1"\nmv $1 now\n'
        "while [ $# -gt 1 ]; do shift; done\n. ./now\n"
    )
    return {**agent.env, "EDITOR": f"sh -e {shlex.quote(str(editor))}", "TMPDIR": str(copies)}


def left_in(folder: Path) -> list[Path]:
    return list((folder / "copies").iterdir())


def test_what_was_set_holds_after_the_command_that_it_names(agent: Agent) -> None:
    until_open(agent)
    said = agent.run("config", "set", "stores.softhsm.signers", "2", check=True).stdout
    assert "stores.softhsm.signers = 2" in said
    assert until_open(agent)["signers"] == 1
    _, _, command = said.partition("next:  dpop-agent ")
    agent.run(*command.split(), check=True)
    assert until_open(agent)["signers"] == 2


def test_an_unplugged_token_hinders_no_change_and_a_wrong_uri_is_refused(
    token: Token, make_agent: Callable[..., Agent]
) -> None:
    agent = make_agent(token.config)  # not started
    before = token.config.read_text()
    done = agent.run("config", "set", "stores.softhsm.uri", "pkcs11:token=nobodys")
    assert done.returncode == 1
    assert "not found: PKCS#11 token pkcs11:token=nobodys" in done.stderr
    assert token.config.read_text() == before
    (token.folder / "tokens").rename(token.folder / "away")
    (token.folder / "tokens").mkdir()
    agent.run("config", "set", "stores.softhsm.signers", "4", check=True)
    agent.run("config", "set", "agent.lock_after", "15m", check=True)
    found = config.load(str(token.config))
    assert (found.lock_after_s, found.stores["softhsm"].signers) == (900, 4)


def test_at_a_terminal_it_says_what_is_wrong_and_opens_the_same_copy_again(
    token: Token, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    agent = make_agent(token.config)
    env = edits(
        agent,
        tmp_path,
        'sed -i "s/^default_store.*/&\\nlock_after = 15/" "$1"',
        'grep -q "lock_after = 15$" "$1"; sed -i "s/= 15$/= \\"15m\\"/" "$1"',
    )
    with Terminal(agent, "config", "edit", env=env) as terminal:
        terminal.until("Edit it again? [Y/n] ")
        assert "agent.lock_after has to be text, not a number" in terminal.shown
        assert config.load(str(token.config)).lock_after_s is None
        terminal.type("\n")
        status, shown = terminal.end()
    assert status == 0
    assert "next:  dpop-agent reload" in shown
    assert config.load(str(token.config)).lock_after_s == 900
    assert left_in(tmp_path) == []


def test_at_a_terminal_a_no_changes_nothing_and_leaves_the_copy(
    token: Token, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    agent = make_agent(token.config)
    before = token.config.read_text()
    for answer, expected in (("n\n", 1), ("\x04", 1), ("\x03", 130)):
        env = edits(agent, tmp_path, 'echo oops >>"$1"')
        with Terminal(agent, "config", "edit", env=env) as terminal:
            terminal.until("Edit it again? [Y/n] ")
            terminal.type(answer)
            status, shown = terminal.end()
        assert status == expected
        assert "Traceback" not in shown
        (folder,) = left_in(tmp_path)
        copy = folder / "config.toml"
        assert copy.read_text() == before + "oops\n"
        assert str(copy) in shown.replace("\r\n", "")
        assert token.config.read_text() == before
        copy.unlink()
        folder.rmdir()


def test_ctrl_c_is_the_editors(
    token: Token, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    agent = make_agent(token.config)
    env = edits(
        agent,
        tmp_path,
        'trap \'echo "# interrupted" >>"$1"; exit 0\' INT; echo ready; while :; do sleep 0.1; done',
    )
    with Terminal(agent, "config", "edit", env=env) as terminal:
        terminal.until("ready")
        terminal.type("\x03")
        status, shown = terminal.end()
    assert status == 0, shown
    assert token.config.read_text().endswith("# interrupted\n")
