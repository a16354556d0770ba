"""aiohttp: what the kit can't say, for it is about this library alone."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dpop_agent.client import AsyncAgentClient, BoundToken
from dpop_agent.client.aiohttp import DPoPMiddleware
from dpop_agent.client.refusal import MAX_CHALLENGE_BODY
from dpop_agent.errors import ConfigurationError, KeyRetired, NonceRequired
from tests.unit.fake_agent import JKT, OTHER_JKT, FakeAgent
from tests.unit.fake_server import FakeServer, Reply, Seen

CHALLENGE = {"WWW_Authenticate": 'DPoP error="use_dpop_nonce"', "DPoP_Nonce": "n1"}
HELD = BoundToken("at-secret", OTHER_JKT)
Use = Callable[[aiohttp.ClientSession, DPoPMiddleware], Awaitable[None]]


def run(agent: FakeAgent, use: Use, *origins: str, **arguments: Any) -> None:
    """Use a session that signs."""

    async def main() -> None:
        async with AsyncAgentClient(agent.path) as client:
            sign = DPoPMiddleware(client, origins=origins)
            arguments.setdefault("middlewares", [sign])
            async with aiohttp.ClientSession(**arguments) as http:
                await use(http, sign)

    asyncio.run(main())


async def done(request: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> None:
    async with request:
        pass


async def never(old: BoundToken | None) -> BoundToken:
    raise AssertionError("no renewal is due")


def redirecting(to: Callable[[], str], status: int = 307) -> Callable[[Seen], Reply]:
    def handle(seen: Seen) -> Reply:
        return Reply(status, Location=to()) if seen.path == "/old" else Reply(200, b"here")

    return handle


def test_the_response_tells_which_proof_it_was(agent: FakeAgent) -> None:
    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        async with http.get(server.origin) as response:
            assert response.dpop.jkt == JKT  # type: ignore[attr-defined]
        async with http.get(other.origin) as response:
            assert response.dpop is None  # type: ignore[attr-defined]

    with FakeServer(lambda _: Reply()) as server, FakeServer(lambda _: Reply()) as other:
        run(agent, use, server.origin)


def test_no_error_and_no_response_shows_a_proof_or_an_access_token(agent: FakeAgent) -> None:
    shown: list[str] = []

    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        me = sign.presenting(never, token=HELD)
        for path in ("/404", "/broken"):
            with pytest.raises(aiohttp.ClientError) as caught:
                await done(http.post(server.origin + path, middlewares=[me], raise_for_status=True))
            shown.append(repr(caught.value))
        async with http.get(server.origin, middlewares=[me]) as response:
            shown.extend((repr(response), repr(response.request_info)))

    def handle(seen: Seen) -> Reply:
        if seen.path == "/broken":
            return Reply(200, X="\0")
        return Reply(404 if seen.path == "/404" else 200)

    with FakeServer(handle) as server:
        run(agent, use, server.origin)
        assert [seen.headers["Authorization"] for seen in server.seen] == ["DPoP at-secret"] * 3
    assert len(shown) == 4
    assert all("at-secret" not in each and "e30.e30" not in each for each in shown)


def test_a_request_with_other_middlewares_is_unsigned_and_has_no_access_token(
    agent: FakeAgent,
) -> None:
    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        me = sign.presenting(never, token=HELD)
        await done(http.get(server.origin, middlewares=[]))
        await done(http.get(server.origin, middlewares=[me]))

    with FakeServer(lambda _: Reply()) as server:
        run(agent, use, server.origin)
        seen = [(len(each.proofs), each.headers["Authorization"]) for each in server.seen]
    assert seen == [(0, None), (1, "DPoP at-secret")]


def test_a_get_that_aiohttp_sends_again_has_another_proof(agent: FakeAgent) -> None:
    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        me = sign.presenting(never, token=HELD)
        async with http.get(server.origin, middlewares=[me]) as response:
            assert response.status == 200

    def handle(seen: Seen) -> Reply:
        if len(server.seen) == 1:
            raise ConnectionAbortedError
        return Reply()

    with FakeServer(handle) as server:
        run(agent, use, server.origin)
        assert [seen.proofs for seen in server.seen] == [["e30.e30.proof-1"], ["e30.e30.proof-2"]]


def test_an_error_for_a_status_is_not_raised_for_a_challenge(agent: FakeAgent) -> None:
    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        async with http.post(server.origin, data=b"body") as response:
            assert response.status == 200

    def handle(seen: Seen) -> Reply:
        return Reply(401, b"{}", **CHALLENGE) if len(server.seen) == 1 else Reply()

    with FakeServer(handle) as server:
        run(agent, use, server.origin, raise_for_status=True)
        assert [seen.body for seen in server.seen] == [b"body"] * 2
        assert server.connections == 1


async def parts() -> AsyncIterator[bytes]:
    yield b"body"


def multipart(part: Any) -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("file", part, filename="name")
    return form


@pytest.mark.parametrize("kind", ["text", "json", "bytes", "empty", "io", "file", "multipart"])
def test_what_aiohttp_can_send_twice_is_sent_again(
    agent: FakeAgent, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"skipped" + b"body" * 100_000)

    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        with (tmp_path / "file").open("rb") as file:
            file.seek(7)
            arguments: dict[str, dict[str, Any]] = {
                "text": {"data": "body"},
                "json": {"json": {"body": 1}},
                "bytes": {"data": b"body"},
                "empty": {"data": b""},
                "io": {"data": io.BytesIO(b"body")},
                "file": {"data": file},
                "multipart": {"data": multipart(file)},
            }
            async with http.post(server.origin, **arguments[kind]) as response:
                assert response.status == 200

    def handle(seen: Seen) -> Reply:
        return Reply(401, b"{}", **CHALLENGE) if len(server.seen) == 1 else Reply()

    with FakeServer(handle) as server:
        run(agent, use, server.origin)
        first, second = (seen.body for seen in server.seen)
    assert first == second
    assert (b"body" in first) == (kind != "empty")
    assert b"skipped" not in first


@pytest.mark.parametrize("kind", ["generator", "reader", "multipart"])
def test_what_can_be_read_once_is_sent_once(agent: FakeAgent, kind: str) -> None:
    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        async with http.get(other.origin) as response:
            reader = response.content
            data = {
                "generator": parts(),
                "reader": reader,
                "multipart": multipart(reader),
            }[kind]
            with pytest.raises(NonceRequired) as caught:
                await done(http.post(server.origin, data=data))
        assert caught.value.nonce == "n1"

    with (
        FakeServer(lambda _: Reply(401, b"{}", **CHALLENGE)) as server,
        FakeServer(lambda _: Reply(200, b"body")) as other,
    ):
        run(agent, use, server.origin)
        (seen,) = server.seen
        assert b"body" in seen.body


def test_a_challenge_is_seen_in_a_session_that_decodes_nothing(agent: FakeAgent) -> None:
    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        async with http.get(server.origin) as response:
            assert response.status == 200

    body = gzip.compress(json.dumps({"error": "use_dpop_nonce"}).encode())
    headers = {"DPoP_Nonce": "n1", "Content_Type": "application/json", "Content_Encoding": "gzip"}

    def handle(seen: Seen) -> Reply:
        return Reply(400, body, **headers) if len(server.seen) == 1 else Reply()

    with FakeServer(handle) as server:
        run(agent, use, server.origin, auto_decompress=False)
        assert len(server.seen) == 2


@pytest.mark.parametrize("size", [1, 2 * MAX_CHALLENGE_BODY])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_refusals_body_is_there_for_the_caller_however_it_is_read(
    agent: FakeAgent, size: int, chunked: bool
) -> None:
    body = json.dumps({"error": "x", "more": "y" * size}).encode()

    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        async with http.get(server.origin) as response:
            assert await response.read() == body
        async with http.get(server.origin) as response:
            assert (await response.json())["error"] == "x"
        async with http.get(server.origin) as response:
            assert b"".join([part async for part in response.content.iter_chunked(1000)]) == body
        async with http.get(server.origin) as response:
            assert b"".join([part async for part, _ in response.content.iter_chunks()]) == body

    def handle(seen: Seen) -> Reply:
        answer = [body[:5], body[5:]] if chunked else body
        return Reply(400, answer, Content_Type="application/json")

    with FakeServer(handle) as server:
        run(agent, use, server.origin)


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_carries_no_body_of_a_signed_request_to_an_unlisted_server(
    agent: FakeAgent, status: int
) -> None:
    async def through_a_task(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        return await asyncio.create_task(handler(request))  # type: ignore[arg-type]

    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        ways: list[list[Any]] = [[sign], [through_a_task, sign], [sign.pinned(JKT)]]
        for middlewares in ways:
            bodies = ({"rt": "geheim"}, b"geheim", multipart(b"geheim"), io.BytesIO(b"geheim"))
            for body in bodies:
                with pytest.raises(ConfigurationError, match="body"):
                    await done(
                        http.post(f"{server.origin}/old", data=body, middlewares=middlewares)
                    )
        # What wasn't signed, or wasn't carried on, is redirected as ever.
        await done(http.post(f"{other.origin}/old", data=b"known"))
        await done(http.get(f"{server.origin}/old"))

    with (
        FakeServer(redirecting(lambda: f"{other.origin}/new", status)) as server,
        FakeServer(redirecting(lambda: f"{other.origin}/new", status)) as other,
    ):
        run(agent, use, server.origin)
        assert [seen.body for seen in other.seen] == [b"known", b"known", b""]
        assert all(seen.proofs == [] for seen in other.seen)


def test_a_redirect_takes_no_access_token_to_another_server_and_a_request_does(
    agent: FakeAgent,
) -> None:
    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        me = sign.presenting(never, token=HELD)
        await done(http.get(f"{server.origin}/old", middlewares=[me]))
        # By hand: aiohttp gives it as the request's own.
        async with http.get(
            f"{server.origin}/old", middlewares=[me], allow_redirects=False
        ) as response:
            await done(http.get(response.headers["Location"], middlewares=[me]))

    with (
        FakeServer(redirecting(lambda: f"{other.origin}/new")) as server,
        FakeServer(redirecting(lambda: "")) as other,
    ):
        run(agent, use, server.origin, other.origin)
        presented = [seen.headers["Authorization"] for seen in other.seen]
        assert [len(seen.proofs) for seen in other.seen] == [1, 1]
    assert presented == [None, "DPoP at-secret"]


def test_nothing_of_a_call_is_kept_when_its_responses_are_gone(agent: FakeAgent) -> None:
    from dpop_agent.client import aiohttp as ours

    before = len(ours._CALLS)

    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        async with http.post(f"{server.origin}/old", data=b"body") as response:
            assert len(response.history) == 1
            assert len(ours._CALLS) == before + 1
        del response
        assert len(ours._CALLS) == before

    with FakeServer(redirecting(lambda: "/new")) as server:
        run(agent, use, server.origin)


@pytest.mark.parametrize("name", ["authorization", "AUTHORIZATION", "Authorization "])
def test_a_header_name_in_another_spelling_is_seen_as_what_it_is(
    agent: FakeAgent, name: str
) -> None:
    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        headers = {name: "DPoP at-1"}
        await done(http.get(server.origin, headers=headers, middlewares=[sign.pinned(JKT)]))
        with pytest.raises(ConfigurationError):
            await done(http.get(other.origin, headers=headers))

    with FakeServer(lambda _: Reply()) as server, FakeServer(lambda _: Reply()) as other:
        run(agent, use, server.origin)
        (seen,) = server.seen
        assert other.seen == []
    assert [value for key, value in seen.headers.items() if "auth" in key.lower()] == ["DPoP at-1"]
    assert agent.proofs[0]["ath"]


@pytest.mark.parametrize("where", ["netrc", "session"])
def test_other_credentials_are_put_in_place_of_no_access_token(
    agent: FakeAgent, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        me = sign.presenting(never, token=HELD)
        await done(http.get(f"{server.origin}/old", middlewares=[me]))

    arguments: dict[str, dict[str, Any]] = {
        "netrc": {"trust_env": True},
        "session": {"headers": {"Authorization": "Basic eDp5"}},
    }
    with FakeServer(redirecting(lambda: "/new")) as server:
        run(agent, use, server.origin, **arguments[where])
        seen = [each.headers.get_all("Authorization") for each in server.seen]
    assert seen == [["DPoP at-secret"]] * 2


def test_a_generation_that_signs_no_more_leads_to_another_access_token(agent: FakeAgent) -> None:
    agent.refuse[OTHER_JKT] = KeyRetired("default@1 is retired")

    async def renew(old: BoundToken | None) -> BoundToken:
        return BoundToken("at-2", JKT)

    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        async with http.get(
            server.origin, middlewares=[sign.presenting(renew, token=HELD)]
        ) as response:
            assert response.dpop.jkt == JKT  # type: ignore[attr-defined]

    with FakeServer(lambda _: Reply()) as server:
        run(agent, use, server.origin)
        assert [seen.headers["Authorization"] for seen in server.seen] == ["DPoP at-2"]


def test_a_renewals_requests_are_signed_by_the_grants_generation(agent: FakeAgent) -> None:
    old = BoundToken("at-0", OTHER_JKT, expires_at=1.0, refresh_token="rt")

    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        async def renew(held: BoundToken | None) -> BoundToken:
            await done(http.post(f"{server.origin}/pinned"))
            await done(http.post(f"{server.origin}/active", middlewares=[sign.pinned(None)]))
            return HELD

        await done(http.get(f"{server.origin}/me", middlewares=[sign.presenting(renew, token=old)]))
        await done(http.post(f"{server.origin}/after"))

    with FakeServer(lambda _: Reply()) as server:
        run(agent, use, server.origin)
    assert [params.get("jkt") for params in agent.proofs] == [OTHER_JKT, None, OTHER_JKT, None]


def test_a_renewal_that_wants_its_own_result_is_refused_rather_than_stuck(
    agent: FakeAgent,
) -> None:
    async def use(http: aiohttp.ClientSession, sign: DPoPMiddleware) -> None:
        async def renew(held: BoundToken | None) -> BoundToken:
            await done(http.get(server.origin, middlewares=[me]))
            raise AssertionError("the request was refused")

        me = sign.presenting(renew)
        with pytest.raises(ConfigurationError, match="needs the access token"):
            await done(http.get(server.origin, middlewares=[me]))

    with FakeServer(lambda _: Reply()) as server:
        run(agent, use, server.origin)
        assert server.seen == []
