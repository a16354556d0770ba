"""`log` shows what is in the audit's files, whoever wrote there."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.cli import audit as cli_audit
from dpop_agent.cli import output
from dpop_agent.cli.main import main

Capture = pytest.CaptureFixture[str]
NOON = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)


def entry(number: int = 0, **members: Any) -> dict[str, Any]:
    """A proof's, so many seconds after noon."""
    at = NOON + timedelta(seconds=number)
    return {
        "time": f"{at:%Y-%m-%dT%H:%M:%S.%fZ}",
        "socket": "agent",
        "peer": {"uid": 1000, "pid": 77, "program": "curl"},
        "method": "proof",
        "outcome": "done",
        "key": "default",
        "generation": 1,
        "jkt": "A" * 43,
        "origin": "https://api.example.com",
        "htm": "GET",
        "jti": f"jti-{number}",
        "us": 400,
        **members,
    }


class Folder:
    """A state folder's audit, written by hand."""

    def __init__(self, state: Path) -> None:
        self.path = state / "audit"

    def write(self, file: str, *entries: dict[str, Any] | bytes) -> None:
        """Add lines to a file."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.path / file).open("ab", buffering=0) as out:
            out.write(
                b"".join(
                    e if isinstance(e, bytes) else json.dumps(e).encode() + b"\n" for e in entries
                )
            )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setenv("DPOP_AGENT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TZ", "UTC-3")  # three hours ahead
    time.tzset()
    yield Folder(tmp_path / "state")
    monkeypatch.undo()
    time.tzset()


def printed(capsys: Capture, *words: str) -> list[str]:
    """The lines that it prints."""
    assert main(["log", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def jtis(capsys: Capture, *words: str) -> list[str]:
    return [json.loads(line)["jti"] for line in printed(capsys, *words, "--json")]


def test_lines_say_when_where_who_by_which_key_and_for_what(
    folder: Folder, capsys: Capture
) -> None:
    folder.write("agent.jsonl", entry())
    assert printed(capsys) == [
        "TIME            SOCKET  WHO               KEY        WHAT",
        "11-26 15:00:00  agent   curl 77           default@1  GET https://api.example.com",
    ]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"method": "proof.sign"}, "default@1  GET https://api.example.com proof.sign"),
        (
            {"outcome": "policy_refused", "rule": "paths"},
            "default@1  refused (policy_refused, paths) GET https://api.example.com",
        ),
        (
            {"outcome": "key_unknown", "key": None, "generation": None},
            "AAAAAAAA…  refused (key_unknown) GET https://api.example.com",
        ),
        (
            {"method": None, "outcome": "parse_error", "key": None, "jkt": None},
            "-          refused (parse_error) a line",
        ),
        ({"method": "key.set", "given": ["origins"]}, "default@1  key.set origins"),
        ({"method": "lock", "store": None, "key": None, "jkt": None}, "-          lock all stores"),
        (
            {"method": "unlock", "store": "work", "outcome": "begun", "key": None, "jkt": None},
            "-          unlock work: its PIN is to be typed",
        ),
        (
            {
                "outcome": "counted",
                "since": "2026-11-26T11:59:00.000000Z",
                "count": 12,
                "refusals": {"locked": 11, "htu_refused": 1},
                **dict.fromkeys(("key", "generation", "jkt")),
            },
            "-          12 more refused since 11-26 14:59:00: locked 11, htu_refused 1",
        ),
        (
            {"outcome": "lost", "count": 3, "key": None, "jkt": None},
            "-          3 lines couldn't be written",
        ),
    ],
)
def test_each_kind_of_line_is_said_in_words(
    folder: Folder, capsys: Capture, members: dict[str, Any], says: str
) -> None:
    folder.write("agent.jsonl", entry(**members))
    assert printed(capsys)[1].endswith(f"  {says}")


@pytest.mark.parametrize(
    ("members", "who"),
    [
        ({"peer": {"uid": 7, "pid": 9, "program": None}}, "pid 9"),
        ({"peer": {"uid": 7, "pid": None, "program": None}}, "uid 7"),
        ({"peer": None}, "-"),
        ({"socket": None, "peer": None}, "the agent"),
    ],
)
def test_a_program_is_named_where_it_is_known(
    folder: Folder, capsys: Capture, members: dict[str, Any], who: str
) -> None:
    folder.write("admin.jsonl", entry(**members))
    assert printed(capsys)[1][24:40].strip() == who


def test_a_line_fits_the_terminal(
    folder: Folder, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "width", lambda: 80)
    refused = {"outcome": "policy_refused", "rule": "paths"}
    folder.write("agent.jsonl", entry(), entry(1, **refused))
    folder.write("agent.jsonl", entry(2, origin=f"https://{'a' * 90}.example"))
    day, short, *wide, start, long = printed(capsys)[1:]
    assert day == "2026-11-26"
    assert short.endswith("https://api.example.com")
    assert wide == [
        "15:00:01  agent   curl 77        default@1",
        "  refused (policy_refused, paths) GET https://api.example.com",
    ]
    assert start.endswith("  default@1")
    assert len(long) == 80
    assert long.endswith("…")


def test_a_terminal_too_narrow_for_the_columns_shows_which_generation_it_was(
    folder: Folder, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "width", lambda: 40)
    folder.write("agent.jsonl", entry(), entry(1, key="k" * 60))
    lines = printed(capsys)
    assert lines[3:5] == ["15:00:00  agent   curl 77", "  default@1  GET https://api.example.com"]
    assert max(map(len, lines)) <= 40


def test_all_sockets_come_in_the_order_of_time_the_older_files_with_them(
    folder: Folder, capsys: Capture
) -> None:
    folder.write("agent.jsonl.1", entry(1), entry(3))
    folder.write("agent.jsonl", entry(5))
    folder.write("admin.jsonl", entry(2), entry(4), entry(6))
    assert jtis(capsys) == [f"jti-{n}" for n in range(1, 7)]
    assert jtis(capsys, "admin") == ["jti-2", "jti-4", "jti-6"]


def test_options_choose_by_key_and_origin_and_keep_what_was_only_counted(
    folder: Folder, capsys: Capture
) -> None:
    folder.write(
        "agent.jsonl",
        entry(1),
        entry(2, key="shop"),
        entry(3, origin="https://b.example"),
        entry(4, outcome="counted", key=None, origin=None, count=5, refusals={}),
    )
    assert jtis(capsys, "--key", "shop") == ["jti-2", "jti-4"]
    assert jtis(capsys, "--origin", "HTTPS://B.example:443") == ["jti-3", "jti-4"]
    assert jtis(capsys, "--key", "default", "--origin", "https://b.example") == ["jti-3", "jti-4"]


@pytest.mark.parametrize(
    ("since", "from_on"),
    [
        ("2026-11-26T12:00:02Z", 2),
        ("2026-11-26 15:00:03", 3),  # where we are
        ("2026-11-26 15:00", 0),
        ("2026-11-26", 0),
        ("2026-11-26T13:00:04+01:00", 4),
    ],
)
def test_since_takes_times_of_here_and_of_elsewhere(
    folder: Folder,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    since: str,
    from_on: int,
) -> None:
    monkeypatch.setattr(cli_audit, "_now", lambda: NOON + timedelta(days=1))
    folder.write("agent.jsonl", entry(-90000), *(entry(n) for n in range(6)))
    assert jtis(capsys, "--since", since) == [f"jti-{n}" for n in range(from_on, 6)]


@pytest.mark.parametrize(("since", "from_on"), [("57s", 3), ("15:00:02", 2), ("1h", 0)])
def test_since_takes_durations_and_times_of_today(
    folder: Folder,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    since: str,
    from_on: int,
) -> None:
    monkeypatch.setattr(cli_audit, "_now", lambda: NOON + timedelta(seconds=60))
    folder.write("agent.jsonl", entry(-90000), *(entry(n) for n in range(6)))
    assert jtis(capsys, "--since", since) == [f"jti-{n}" for n in range(from_on, 6)]


@pytest.mark.parametrize("since", ["yesterday", "5", "", "25:00", "0001-01-01", "2026-13-01"])
def test_a_since_that_is_no_time_is_refused_with_what_one_is(
    folder: Folder, capsys: Capture, since: str
) -> None:
    assert main(["log", "--since", since]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("dpop-agent log: error: argument --since: it has to be a duration")


def test_a_since_in_the_future_is_refused(folder: Folder, capsys: Capture) -> None:
    assert main(["log", "--since", "9000-01-01"]) == 2
    assert "--since: it is in the future" in capsys.readouterr().err


def test_where_nothing_is_recorded_it_says_so_and_why_that_may_be(
    folder: Folder, capsys: Capture
) -> None:
    assert main(["log"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"nothing is recorded in {folder.path} yet; " in line
    assert "dpop-agent config show" in line


def test_an_unknown_socket_is_refused_with_those_that_there_are(
    folder: Folder, capsys: Capture
) -> None:
    folder.write("agent.jsonl", entry())
    folder.write("admin.jsonl", entry())
    for name in ("agnet", "../../x", "agent.jsonl"):
        assert main(["log", name]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.endswith("something is of: admin, agent")


@pytest.mark.parametrize("what", ["the folder", "a file"])
def test_what_others_can_change_isnt_read(folder: Folder, capsys: Capture, what: str) -> None:
    folder.write("agent.jsonl", entry())
    (folder.path if what == "the folder" else folder.path / "agent.jsonl").chmod(0o722)
    assert main(["log"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "others can" in err


@pytest.mark.skipif(os.getuid() != 0, reason="to be another user takes root")
def test_another_users_file_isnt_read(folder: Folder, capsys: Capture) -> None:
    folder.write("agent.jsonl", entry())
    os.chown(folder.path / "agent.jsonl", 4711, 4711)
    assert main(["log"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "belongs to uid 4711" in err


HOSTILE = "\x1b]0;owned\x07\x9b31m\u202e\n\r"


def test_what_somebody_wrote_there_steers_no_terminal(folder: Folder, capsys: Capture) -> None:
    members = ("socket", "method", "outcome", "key", "origin", "htm", "rule", "time")
    for name in members:
        folder.write("agent.jsonl", entry() | {name: HOSTILE})
    folder.write("agent.jsonl", entry(peer={"uid": 1, "pid": HOSTILE, "program": HOSTILE}))
    folder.write("agent.jsonl", entry(method="key.set", given=[HOSTILE]))
    folder.write("agent.jsonl", entry(outcome="counted", count=HOSTILE, refusals={HOSTILE: 1}))
    for words in ([], ["--json"]):
        lines = printed(capsys, *words)
        assert len(lines) == len(members) + 3 + (not words)
        assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("member", sorted(entry()))
@pytest.mark.parametrize("value", [None, 7, -1.5, True, [], {}, [[]], "x"])
def test_a_member_of_another_kind_is_shown_somehow(
    folder: Folder, capsys: Capture, member: str, value: Any
) -> None:
    folder.write("agent.jsonl", entry() | {member: value}, entry(5))
    main(["log"])
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("11-26 15:00:05  ")
    assert "a bug" not in err


def test_what_is_no_line_of_the_audits_is_left_out_and_counted(
    folder: Folder, capsys: Capture
) -> None:
    folder.write("agent.jsonl", entry(1))
    folder.write("agent.jsonl", b'{"time":"2026-11-26T12:\n', b"\xff\0\n", b"[1]\n", b"{}\n")
    folder.write("agent.jsonl", b"[" * 5000 + b"\n", b"x" * 200_000 + b"\n", b"\n")
    folder.write("agent.jsonl", entry(2))
    assert main(["log", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["jti"] for line in out.splitlines()] == ["jti-1", "jti-2"]
    assert err == "dpop-agent: 7 lines couldn't be read, and are left out\n"


def test_a_line_that_is_being_written_isnt_shown_yet(folder: Folder, capsys: Capture) -> None:
    folder.write("agent.jsonl", entry(1), b'{"time":"2026-11-2')
    assert jtis(capsys) == ["jti-1"]


def test_follow_goes_on_over_full_files_new_sockets_and_half_written_lines(
    folder: Folder, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Callable[[], None]] = [
        lambda: folder.write("agent.jsonl", entry(21)),
        lambda: folder.write("agent.jsonl", json.dumps(entry(22)).encode()[:50]),
        lambda: folder.write("agent.jsonl", json.dumps(entry(22)).encode()[50:] + b"\n"),
        lambda: rotate(entry(23), entry(24)),
        lambda: folder.write("agent.jsonl", entry(25)),
        lambda: folder.write("shop.jsonl", entry(26)),
        lambda: folder.write("agent.jsonl", entry(27, key="other")),
    ]

    def rotate(last: dict[str, Any], first: dict[str, Any]) -> None:
        folder.write("agent.jsonl", last)
        (folder.path / "agent.jsonl").replace(folder.path / "agent.jsonl.1")
        folder.write("agent.jsonl", first)

    def next_step(_seconds: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr(time, "sleep", next_step)
    folder.write("agent.jsonl", *(entry(n) for n in range(20)))
    assert main(["log", "--follow", "--json", "--key", "default"]) == 130
    shown = [json.loads(line)["jti"] for line in capsys.readouterr().out.splitlines()]
    assert shown == [f"jti-{n}" for n in [*range(10, 20), *range(21, 27)]]


def test_follow_waits_where_nothing_is_recorded_yet(
    folder: Folder, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def next_step(_seconds: float) -> None:
        if begun.is_set():
            raise KeyboardInterrupt
        begun.set()
        folder.write("agent.jsonl", entry(1))

    monkeypatch.setattr(time, "sleep", next_step)
    assert main(["log", "--follow"]) == 130
    assert "11-26 15:00:01" in capsys.readouterr().out
