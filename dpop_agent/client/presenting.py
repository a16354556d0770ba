"""Presenting an access token on one hop, and another one where the first is refused.

For libraries whose hops can be sent again one by one; httpx's auths send whole requests again.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dpop_agent.client.exchange import leave
from dpop_agent.client.grant import current_renewal
from dpop_agent.client.hop import DEFAULT_KEY
from dpop_agent.client.refusal import is_event_stream
from dpop_agent.errors import KeyUnusable

if TYPE_CHECKING:
    from collections.abc import Callable

    from dpop_agent.client.exchange import Calls, Response, Sender
    from dpop_agent.client.grant import AsyncGrant, BlockingGrant
    from dpop_agent.client.hop import Done
    from dpop_agent.client.token import BoundToken


def present(
    grant: BlockingGrant | AsyncGrant,
    hop_by: Callable[[BoundToken], Calls[tuple[Response, Done]]],
    sender: Sender[Response],
    *,
    replayable: bool,
) -> Calls[tuple[Response, Done]]:
    """Do one hop with the grant's access token; a second time at most, with another one.

    Args:
        grant: has the access token, and renews it.
        hop_by: does the hop with an access token, by the generation that it is bound to.
        sender: the request that the hop is about.
        replayable: whether the request's body can be sent twice.

    Raises:
        ProofRefused: two access tokens were refused, and by the server's clock the agent's is
            wrong.
        Exception: what `hop_by` and the grant's renewal raise.
    """
    access_token, response, done = yield from _with_usable_key(grant, hop_by)
    endless = is_event_stream(sender.answer(response).headers("Content-Type"))
    repeatable = replayable and not endless
    if not grant.replaces(access_token, done, repeatable=repeatable):
        return response, done
    yield from leave(response, sender)
    another, response, done = yield from _with_usable_key(grant, hop_by, but=access_token)
    if grant.replaces(another, done, repeatable=repeatable) and done.clock is not None:
        yield partial(sender.close, response)
        raise done.clock
    return response, done


def _with_usable_key(
    grant: BlockingGrant | AsyncGrant,
    hop_by: Callable[[BoundToken], Calls[tuple[Response, Done]]],
    *,
    but: BoundToken | None = None,
) -> Calls[tuple[BoundToken, Response, Done]]:
    access_token: BoundToken = yield partial(grant.access_token, but=but)
    try:
        response, done = yield from hop_by(access_token)
    except KeyUnusable:  # nothing was sent
        access_token = yield partial(grant.access_token, but=access_token)
        response, done = yield from hop_by(access_token)
    return access_token, response, done


def sign(
    hop_by: Callable[[str | None, str | None], Calls[tuple[Response, Done]]],
    *,
    agent: str,
    key: str | None,
    jkt: str | None,
    pinned: bool,
) -> Calls[tuple[Response, Done]]:
    """Do one hop by the generation that its request names, or that its renewal does.

    Args:
        hop_by: does it by that key's generation with that jkt, by the active one where None.
        agent: the path of the agent's socket.
        key: the key's name, if one is set.
        jkt: the generation that the request names.
        pinned: whether it names one, or presents an access token: which generation that one is
            bound to isn't guessed.
    """
    renewal = None if pinned else current_renewal()
    if renewal is None:
        return (yield from hop_by(key, jkt))
    named = key or DEFAULT_KEY
    return (yield from renewal.hop(partial(hop_by, named), agent=agent, key=named))
