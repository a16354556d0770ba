"""Each request is answered, also one whose task is broken off and one that comes too late."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest

from dpop_agent.agent.background import Background
from dpop_agent.agent.call import Call
from dpop_agent.agent.handler import Handler
from dpop_agent.errors import AgentUnavailable, DPoPAgentError
from dpop_agent.protocol import Request

Told = list[dict[str, Any] | bytes | DPoPAgentError]


def handler(background: Background, lifecycle: object) -> Handler:
    return Handler(
        Mock(),
        proofs=Mock(),
        lifecycle=lifecycle,  # type: ignore[arg-type]
        recovery=Mock(),
        stores=Mock(),
        views=Mock(),
        sockets=Mock(),
        leases=Mock(),
        background=background,
    )


def suspend(told: Told) -> Call:
    return Call(Request(1, "key.suspend", {"key": "k", "generation": 1}), Mock(), told.append, 0.0)


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "not begun"])
def test_a_verb_that_is_broken_off_is_answered(begun: bool) -> None:
    async def for_ever(_: object) -> None:
        await asyncio.Event().wait()

    async def story() -> None:
        told: Told = []
        background = Background()
        handler(background, Mock(suspend=for_ever)).handle(suspend(told))
        if begun:
            await asyncio.sleep(0)
        await background.cancel(within_s=5)
        await asyncio.sleep(0)
        (answer,) = told
        assert isinstance(answer, AgentUnavailable)
        assert "finished or undone at the start" in answer.hint

    asyncio.run(story())


def test_what_comes_once_no_more_is_taken_is_refused_and_not_begun() -> None:
    lifecycle, told = Mock(), Told()
    ending = handler(Background(), lifecycle)
    ending.take_no_more()
    ending.handle(suspend(told))
    assert [type(answer) for answer in told] == [AgentUnavailable]
    lifecycle.suspend.assert_not_called()
