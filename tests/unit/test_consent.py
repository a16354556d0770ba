"""Whose consent is asked for, when nobody is, and for how long a yes holds."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpop_agent.agent import asking
from dpop_agent.agent.asking import NotAgreed
from dpop_agent.agent.background import Background
from dpop_agent.agent.consent import MAX_QUESTIONS, QUIET_S, Consents, Wish
from dpop_agent.agent.keys import Key
from dpop_agent.agent.rules import Rules
from dpop_agent.errors import AgentUnavailable, Cancelled, ConsentRefused, DPoPAgentError

SHOP = Key("shop", "work", "ES256", "2026-11-20T19:05:00Z", Rules(confirm_s=900))
EACH = replace(SHOP, rules=Rules(confirm_s=0))
NOT_YET = object()


def wish(**changes: Any) -> Wish:
    flow = (1000, "/run/agent.sock", 1)
    one = Wish(SHOP, ("work", 0), "https://a.example", "GET", lambda: 0, flow)
    return one._replace(**changes)


def on(socket: str, connection: int = 1) -> tuple[int, str, int]:
    return 1000, socket, connection


class Person:
    """Is asked, and answers when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.questions: list[str] = []
        self.ended = 0
        self._answers: list[asyncio.Future[None]] = []
        self.background = Background()
        self.consents = Consents(self._ask, self.background, lambda: self.now)

    async def _ask(self, question: str) -> None:
        self.questions.append(question)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        try:
            await answer
        finally:
            self.ended += 1

    async def answers(self, error: Exception | None = None) -> None:
        """Say yes to the question that is open, or that."""
        (answer,) = [one for one in self._answers if not one.done()]
        answer.set_result(None) if error is None else answer.set_exception(error)
        await settled()

    def is_asked(self, one: Wish) -> list[Any]:
        """Ask for it; what it came to is in the list, once it did."""
        came: list[Any] = []
        self.consents.start(one, announce=lambda: None, then=came.append)
        return came


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def story(told: Callable[[Person], Coroutine[Any, Any, None]]) -> None:
    async def tell() -> None:
        await told(Person())

    asyncio.run(tell())


def refusal(came: list[Any]) -> ConsentRefused:
    (error,) = came
    assert isinstance(error, ConsentRefused)
    assert error.details == {"rule": "confirm_s"}
    return error


def test_a_yes_holds_for_its_time_for_that_key_origin_and_socket() -> None:
    async def told(person: Person) -> None:
        came = person.is_asked(wish())
        await settled()
        assert came == []
        await person.answers()
        assert came == [None]
        holds = person.consents.holds
        assert holds(wish())
        assert holds(wish(htm="DELETE", process=lambda: 7, flow=on("/run/agent.sock", 2)))
        assert not holds(wish(origin="https://b.example"))
        assert not holds(wish(flow=on("/run/sockets/ci/agent.sock")))
        assert not holds(wish(flow=(1001, "/run/agent.sock", 1)))
        assert not holds(wish(key=replace(SHOP, name="other")))
        person.now += 899
        assert holds(wish())
        person.now += 1
        assert not holds(wish())

    story(told)


@pytest.mark.parametrize(
    "since",
    [{"key": replace(SHOP, rules=Rules(confirm_s=901))}, {"key": replace(SHOP)}]
    + [{"locks": locks} for locks in (("work", 1), ("another", 0))],
    ids=["policy", "state", "lock", "store"],
)
def test_a_yes_ends_with_any_change_of_its_key_and_with_a_lock(since: dict[str, Any]) -> None:
    async def told(person: Person) -> None:
        person.is_asked(wish())
        await settled()
        await person.answers()
        assert person.consents.holds(wish())
        assert not person.consents.holds(wish(**since))

    story(told)


def test_where_each_proof_wants_its_own_yes_none_holds() -> None:
    async def told(person: Person) -> None:
        first, second = (person.is_asked(wish(key=EACH)) for _ in range(2))
        await settled()
        await person.answers()
        assert (first, second) == ([None], [])
        assert not person.consents.holds(wish(key=EACH))
        await person.answers()
        assert second == [None]
        assert len(person.questions) == 2

    story(told)


def test_one_question_is_open_at_a_time_whoever_asks() -> None:
    async def told(person: Person) -> None:
        wishes = [
            wish(origin=f"https://{n}.example", flow=on(f"/run/{n % 2}", n)) for n in range(5)
        ]
        came = [person.is_asked(one) for one in wishes]
        for n in range(5):
            await settled()
            assert len(person.questions) == n + 1
            assert person.ended == n
            await person.answers()
        assert came == [[None]] * 5

    story(told)


def test_those_who_wait_for_the_same_get_it_by_the_one_yes() -> None:
    async def told(person: Person) -> None:
        came = [person.is_asked(wish(flow=on("/run/agent.sock", n))) for n in range(5)]
        await settled()
        await person.answers()
        await settled()
        assert came == [[None]] * 5
        assert len(person.questions) == 1

    story(told)


def test_after_a_no_nobody_is_asked_by_that_socket_for_30_s_whatever_is_wanted() -> None:
    async def told(person: Person) -> None:
        waits = [wish(), wish(key=EACH), wish(origin="https://b.example", flow=on("/run/b"))]
        first, same_socket, other_socket = map(person.is_asked, waits)
        await settled()
        await person.answers(NotAgreed("the answer was no"))
        await settled()
        error = refusal(first)
        assert "the key shop wants a person's consent, and the answer was no" in error.message
        assert error.retry == "no"
        assert "nobody is asked again for 30 s" in refusal(same_socket).message
        assert len(person.questions) == 2, "the other socket's"
        await person.answers()
        assert other_socket == [None]
        person.now += QUIET_S - 1
        late = person.is_asked(wish(origin="https://c.example", flow=on("/run/agent.sock", 9)))
        await settled()
        error = refusal(late)
        assert (error.retry, error.retry_after_ms) == ("later", 1000)
        assert "for 1 s: last time the answer was no" in error.message
        assert len(person.questions) == 2
        person.now += 1
        again = person.is_asked(wish())
        await settled()
        assert (len(person.questions), again) == (3, [])
        await person.answers()
        assert again == [None]

    story(told)


def test_a_yes_from_before_holds_though_somebody_said_no_since() -> None:
    async def told(person: Person) -> None:
        person.is_asked(wish())
        await settled()
        await person.answers()
        person.is_asked(wish(origin="https://b.example"))
        await settled()
        await person.answers(NotAgreed("the answer was no"))
        assert person.consents.holds(wish())

    story(told)


def test_a_question_ends_with_its_connection_and_another_sockets_is_asked() -> None:
    async def told(person: Person) -> None:
        gone = [person.is_asked(wish(key=EACH, flow=on("/run/s", 1))) for _ in range(3)]
        stays = person.is_asked(wish(key=EACH, flow=on("/run/t", 2)))
        await settled()
        person.consents.drop(on("/run/s", 1))
        await settled()
        assert person.ended == 1
        assert len(person.questions) == 2
        await person.answers()
        assert stays == [None]
        assert all(isinstance(came[0], Cancelled) for came in gone)
        person.consents.drop(on("/run/s", 1))

    story(told)


def test_a_question_that_was_shown_and_withdrawn_counts_as_a_no() -> None:
    async def told(person: Person) -> None:
        person.is_asked(wish(key=EACH, flow=on("/run/s", 1)))
        waited = person.is_asked(wish(key=EACH, flow=on("/run/s", 2)))
        await settled()
        person.consents.drop(on("/run/s", 1))
        await settled()
        error = refusal(waited)
        assert "for 30 s: last time the question was withdrawn" in error.message
        for n in range(14):
            person.is_asked(wish(key=EACH, flow=on("/run/s", n)))
            await settled()
            person.consents.drop(on("/run/s", n))
        assert len(person.questions) == 1
        person.now += QUIET_S
        person.is_asked(wish(key=EACH, flow=on("/run/s", 3)))
        await settled()
        assert len(person.questions) == 2

    story(told)


def test_a_question_that_was_withdrawn_before_it_was_shown_silences_nobody() -> None:
    async def told(person: Person) -> None:
        shown = person.is_asked(wish(key=EACH, flow=on("/run/s", 1)))
        person.is_asked(wish(key=EACH, flow=on("/run/s", 2)))
        last = person.is_asked(wish(key=EACH, flow=on("/run/s", 3)))
        await settled()
        person.consents.drop(on("/run/s", 2))
        await person.answers()
        await person.answers()
        assert (shown, last) == ([None], [None])
        assert len(person.questions) == 2

    story(told)


def test_of_those_who_wait_and_go_nothing_stays() -> None:
    async def told(person: Person) -> None:
        person.is_asked(wish(key=EACH, flow=on("/run/s", 0)))
        await settled()
        for n in range(1, 100):
            came = person.is_asked(wish(key=EACH, flow=on("/run/s", n)))
            await asyncio.sleep(0)
            assert person.consents._waiting.size == 1
            person.consents.drop(on("/run/s", n))
            assert person.consents._waiting.size == 0
            await settled()
            assert isinstance(came[0], Cancelled)
        await person.answers()
        assert not person.consents._questions
        assert not person.consents._tasks

    story(told)


def test_a_turn_that_comes_as_its_connection_goes_is_passed_on() -> None:
    async def told(person: Person) -> None:
        person.is_asked(wish(key=EACH, flow=on("/run/a")))
        gone = person.is_asked(wish(key=EACH, flow=on("/run/b")))
        stays = person.is_asked(wish(key=EACH, flow=on("/run/c")))
        await settled()
        person._answers[0].set_result(None)
        while person.consents._waiting.size > 1:
            await asyncio.sleep(0)
        person.consents.drop(on("/run/b"))
        await settled()
        await person.answers()
        assert (len(person.questions), len(gone), stays) == (2, 1, [None])

    story(told)


def test_sockets_take_turns_however_many_questions_one_has() -> None:
    async def told(person: Person) -> None:
        for n in range(MAX_QUESTIONS):
            person.is_asked(wish(key=EACH, origin="https://evil.example", flow=on("/run/s", n)))
        await settled()
        honest = [person.is_asked(wish(key=EACH, flow=on(f"/run/{n}"))) for n in range(2)]
        for _ in range(4):  # the flooding one's two, and one for each other
            await settled()
            person.is_asked(wish(key=EACH, origin="https://evil.example", flow=on("/run/s", 99)))
            await person.answers()
        assert honest == [[None], [None]]

    story(told)


def test_of_a_sockets_questions_few_wait_and_more_are_refused_until_one_is_answered() -> None:
    async def told(person: Person) -> None:
        came = [person.is_asked(wish(key=EACH, flow=on("/run/s", n))) for n in range(80)]
        await settled()
        refused = [one for one in came if one]
        assert len(refused) == 80 - MAX_QUESTIONS
        assert {refusal(one).retry for one in refused} == {"later"}
        assert "8 other questions from this socket wait" in refusal(refused[0]).message
        other = person.is_asked(wish(key=EACH, flow=on("/run/t")))
        await settled()
        assert other == [], "another socket has its own"
        await person.answers()
        late = person.is_asked(wish(key=EACH, flow=on("/run/s", 99)))
        await settled()
        assert late == []

    story(told)


def test_however_many_wait_for_what_one_yes_is_good_for_none_is_refused() -> None:
    async def told(person: Person) -> None:
        came = [person.is_asked(wish(flow=on("/run/s", n))) for n in range(80)]
        await settled()
        other = person.is_asked(wish(flow=on("/run/t")))
        await settled()
        await person.answers()
        assert came == [[None]] * 80, "before the other socket's is answered"
        assert (len(person.questions), other) == (2, [])

    story(told)


def test_a_yes_is_over_after_its_time_though_the_machine_slept_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept_s = 0.0
    clock_gettime = time.clock_gettime

    def with_sleep(clock: int) -> float:
        return clock_gettime(clock) + (slept_s if clock == time.CLOCK_BOOTTIME else 0.0)

    async def told() -> None:
        nonlocal slept_s

        async def yes(question: str) -> None:
            assert question

        consents = Consents(yes, Background())
        consents.start(wish(), announce=lambda: None, then=lambda _: None)
        await settled()
        assert consents.holds(wish())
        slept_s = 900.0
        assert not consents.holds(wish())

    monkeypatch.setattr(time, "clock_gettime", with_sleep)
    asyncio.run(told())


def test_at_the_agents_end_the_question_ends_and_whoever_waits_is_told() -> None:
    async def told(person: Person) -> None:
        came = [person.is_asked(wish(flow=on("/run/s", n))) for n in range(2)]
        await settled()
        await person.background.cancel(within_s=5)
        await settled()
        assert person.ended == 1
        for (error,) in came:
            assert isinstance(error, AgentUnavailable)

    story(told)


def test_what_nobody_foresaw_is_no_yes() -> None:
    async def told(person: Person) -> None:
        came = person.is_asked(wish())
        await settled()
        await person.answers(RuntimeError("bug"))
        await settled()
        assert isinstance(came[0], DPoPAgentError)
        assert not person.consents.holds(wish())

    story(told)


def test_whoever_waits_is_told_so_before_and_when_it_is_asked() -> None:
    async def told(person: Person) -> None:
        events: list[int] = []

        def start(n: int) -> None:
            one = wish(key=EACH, flow=on("/run/s", n))
            person.consents.start(
                one, announce=lambda: events.append(n), then=lambda _: events.append(10 * n)
            )

        start(1)
        start(2)
        await settled()
        assert events == [1, 1, 2]
        await person.answers()
        assert sorted(events) == [1, 1, 2, 2, 10]
        await person.answers()

    story(told)


# What is asked


def test_the_question_names_key_origin_method_and_who_asks_as_a_hint() -> None:
    lines = wish(htm="POST", process=os.getpid).question.splitlines()
    assert lines[0] == "Sign a proof with the key shop?"
    assert (
        "POST at https://api.example.com"
        in wish(htm="POST", origin="https://api.example.com").question.splitlines()
    )
    assert f"process {os.getpid()}" in lines[3]
    assert "That is a hint alone" in lines[3]
    assert lines[-1] == "A yes holds for 15m, for every method."
    assert "holds" not in wish(key=EACH).question
    assert "asked for by a program that can't be told." in wish().question
    assert "socket" not in wish().question
    lines = wish(socket="ci").question.splitlines()
    assert lines[2:4] == ["GET at https://a.example", "by the filtered socket ci"]


def test_a_process_is_told_by_its_program_and_its_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert asking.asker(os.getpid()).startswith(asking.shown(os.path.realpath("/proc/self/exe")))
    assert asking.asker(2**22 + 1) == f"a program that has ended, process {2**22 + 1}"
    for text, unit in (
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/ci-runner.service\n", "ci"),
        ("12:pids:/x.slice\n0::/user.slice/session-3.scope\n", "session-3.scope"),
        ("0::/evil\nsay yes.service\n", ""),
        ("0::/\n", ""),
        ("", ""),
    ):
        monkeypatch.setattr(asking, "_read", lambda _path, said=text: said)
        told = asking.asker(os.getpid())
        assert told.isprintable()
        assert (f", unit {unit}" in told) if unit else (", unit" not in told)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/usr/bin/python3.11", "/usr/bin/python3.11"),
        ("/tmp/x\n\nPress yes to go on", "/tmp/x__Press_yes_to_go_on"),
        ("<b>bank</b>&amp;%0A", "_b_bank_/b__amp__0A"),
        ("pay\u202eltd\u00e9\U0001f600", r"pay\u202eltd\xe9\U0001f600"),
        ("\x1b[2J\x00", "__2J_"),
        ("a" * 200, "..." + "a" * 80),
        ("\udcff", r"\udcff"),
        ("", ""),
    ],
)
def test_foreign_text_is_escaped_and_cut(text: str, shown: str) -> None:
    assert asking.shown(text) == shown


# A command that asks


def script(folder: Path, text: str) -> str:
    program = folder / "asks"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o700)
    return str(program)


def asked(command: list[str], *, within_s: float = 20.0) -> str | None:
    """None for a yes, or why not."""
    try:
        asyncio.run(asking.ask("Sign?\n\nGET at <b>", command=command, within_s=within_s))
    except NotAgreed as e:
        return e.why
    return None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("exit 0", None),
        ("exit 1", "the answer was no"),
        ("exit 255", "the answer was no"),
        ("kill -9 $$", "the answer was no"),
        ('test "$2" = "Sign?\n\nGET at <b>" -a "$1" = --yesno -a $# = 2', None),
        ("read line && exit 0; exit 3", "the answer was no"),
    ],
)
def test_a_command_says_yes_by_its_status_alone(tmp_path: Path, text: str, why: str | None) -> None:
    assert asked([script(tmp_path, text), "--yesno"]) == why


def test_a_command_that_takes_too_long_is_a_no_and_nothing_of_it_stays(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = script(tmp_path, f"sleep 600 & echo $! $$ > {pids}; wait")
    assert asked([program], within_s=1.0) == "nobody answered in time"
    for pid in pids.read_text().split():
        assert not _runs(int(pid))


def test_a_question_that_is_called_off_ends_its_command(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = script(tmp_path, f"echo $$ > {pids}.new; mv {pids}.new {pids}; exec sleep 600")

    async def call_off() -> None:
        task = asyncio.ensure_future(asking.ask("Sign?", command=[program], within_s=600))
        while not pids.exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(call_off())
    assert not _runs(int(pids.read_text()))


def test_a_command_that_isnt_there_or_that_others_can_change_asks_nobody(tmp_path: Path) -> None:
    assert "nobody can be asked (No such file" in str(asked([str(tmp_path / "none")]))
    program = script(tmp_path, "exit 0")
    Path(program).chmod(0o777)
    assert "nobody can be asked: the program that asks for consent" in str(asked([program]))
    Path(program).chmod(0o600)
    assert "nobody can be asked (Permission denied)" in str(asked([program]))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
