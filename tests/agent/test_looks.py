"""What people see at a terminal: what fits, what aligns, what has colours."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from dpop_agent.cli import output
from dpop_agent.errors import DPoPAgentError
from tests.agent.places import add_store, until_logged
from tests.processes import Agent, new_token
from tests.terminal import Terminal, left

COLOUR = re.compile(r"\x1b\[(?:[0-9]+(?:;[0-9]+)*)?m")
LONG = "a-key-with-the-longest-name-that-there-is".ljust(64, "x")

SHOWN = [
    ("status",),
    ("key", "list"),
    ("key", "show", "default"),
    ("key", "show", LONG),
    ("socket", "list"),
    ("socket", "show", "coder"),
    ("log",),
    ("doctor",),
]


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with something of everything: states, stores, sockets, servers, refusals."""
    folder = tmp_path_factory.mktemp("crowded")
    token, locked = new_token(folder / "one"), new_token(folder / "two", "für 山田")
    config = token.config
    prompt = locked.config.read_text().replace(f"file:{locked.pin_file}", "prompt")
    locked.config.write_text(prompt)
    add_store(config, "card-at-home", locked)
    locked.config.write_text(re.sub(r"pkcs11:token=[^\"]*", "pkcs11:token=elsewhere", prompt))
    add_store(config, "hsm", locked)
    agent = Agent(config, folder / "state")
    agent.env["TERM"] = "xterm"
    with agent.serving("default", "shop", "taken", LONG):
        for words in (
            ("key", "set", "default", "--method", "GET", "--path", "/v1", "--confirm", "15m"),
            ("key", "set", "default", "--any-method", "--any-path", "--confirm", "never"),
            ("key", "rotate", "default"),
            ("key", "rotate", "default", "--stage"),
            ("key", "rotate", "shop", "--drain", "90s"),
            ("key", "suspend", "shop@1"),
            ("key", "compromise", "taken@1", "--yes"),
            ("key", "rotate", LONG, "--drain", "1h"),
            ("socket", "add", "coder", "--key", "shop", "--method", "GET", "--expires", "8h"),
            ("socket", "add", "b" * 64, "--key", "default"),
        ):
            agent.run(*words, check=True)
        client = agent.client()
        for number in range(10):
            uri = f"https://api{number}.{'long-name.' * number}example.com/v1"
            client.proof("GET", uri)
            client.observe([{"htu": uri, "nonce": f"n{number}", "date": "2026-11-26T15:00:00Z"}])
        with pytest.raises(DPoPAgentError):
            client.proof("GET", "https://api.example.com/", key="none")
        until_logged(agent, "store card-at-home")
        yield agent


def shown(agent: Agent, *words: str, columns: int, **env: str) -> str:
    """What a command leaves at a terminal, its colours with it."""
    with Terminal(agent, *words, size=(50, columns), env=agent.env | env) as terminal:
        _, text = terminal.end()
    return left(text)


def without_colours(text: str) -> str:
    return COLOUR.sub("", text)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_no_line_is_longer_than_the_terminal_but_for_what_is_to_be_copied(
    crowded: Agent, words: tuple[str, ...], columns: int
) -> None:
    text = without_colours(shown(crowded, *words, columns=columns))
    assert "\x1b" not in text
    assert len(text.splitlines()) > 2
    for line in text.splitlines():
        is_word = len(line.split()) == 1
        is_command = "dpop-agent " in line
        assert output.columns(line) <= columns or is_word or is_command, line


def test_the_columns_of_keys_align_beside_the_longest_name(crowded: Agent) -> None:
    text = without_colours(shown(crowded, "key", "list", columns=80))
    head, *lines = text.splitlines()
    place = head.index("STATE")
    states = [
        line[place:].split()[0] for line in lines if not line.startswith(("  jkt ", LONG)) and line
    ]
    assert states == [
        *("draining", "active", "draining", "active", "staged", "suspended", "active"),
        "compromised",
    ]


@pytest.mark.parametrize("words", SHOWN[:-2], ids=" ".join)
def test_colours_add_nothing_to_the_words(crowded: Agent, words: tuple[str, ...]) -> None:
    def steady(text: str) -> str:
        return re.sub(r"[0-9]+ (?:s|min) (old|ago)", "", text)

    coloured = shown(crowded, *words, columns=80)
    bare = shown(crowded, *words, columns=80, NO_COLOR="1")
    assert "\x1b" not in bare
    assert COLOUR.search(coloured)
    assert steady(without_colours(coloured)).split() == steady(bare).split()


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_what_is_piped_has_no_escapes(crowded: Agent, words: tuple[str, ...]) -> None:
    assert "\x1b" not in crowded.run(*words).stdout


def test_times_are_those_of_here_at_a_terminal_and_utc_in_a_pipe(crowded: Agent) -> None:
    local = shown(crowded, "key", "show", "shop", columns=80, TZ="XYZ-5:30")
    piped = crowded.run("key", "show", "shop").stdout
    (here,) = re.findall(r"shop@2: .*since (\S+ \S+) XYZ", without_colours(local))
    (utc,) = re.findall(r"shop@2: .*since (\S+ \S+) UTC", piped)
    hours, minutes = map(int, here[11:].split(":"))
    at, past = map(int, utc[11:].split(":"))
    assert (hours * 60 + minutes - at * 60 - past) % (24 * 60) == 330


def test_an_error_stays_one_line_that_can_be_pasted(crowded: Agent) -> None:
    text = shown(crowded, "key", "show", "default@9", columns=60)
    assert text == (
        "dpop-agent: the key default has no generation 9; see: dpop-agent key list default --all\n"
    )
