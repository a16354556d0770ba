"""requests_oauth2client: an access token that is an auth of requests', by a key of the agent's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests
from requests_oauth2client import InvalidDPoPAccessToken

from dpop_agent.client import AgentClient
from dpop_agent.client.requests_oauth2client import AgentDPoPKey, AgentDPoPToken
from dpop_agent.errors import ConfigurationError
from tests.kit.adapter import BlockingAdapter, Came, Case, Request
from tests.kit.adapters.requests import body_of

HEADER = "the library writes the Authorization header itself"


@dataclass
class Client:
    """A session, and what makes keys."""

    http: requests.Session
    agent: AgentClient
    wanted: dict[str, Any]

    def token(self, request: Request) -> AgentDPoPToken:
        """The library signs no request without an access token: where the case has none, ours."""
        held = request.get("access_token", {})
        jkt = held.get("jkt", request.get("jkt"))
        origins, name = self.wanted["origins"], self.wanted["key"]
        key = AgentDPoPKey(self.agent, key=None if jkt else name, jkt=jkt, origins=origins)
        return AgentDPoPToken(held.get("access_token", "at-of-the-kit"), _dpop_key=key)


class RequestsOAuth2Client(BlockingAdapter):
    name = "requests_oauth2client"
    http_errors = (requests.RequestException,)
    cannot = {  # noqa: RUF012
        "renewal": "the library renews by expiry alone, by token requests of its own making",
        "raw headers": HEADER,
        "repeated headers": HEADER,
        "a_header_with_an_access_token_is_hashed_into_the_proof": HEADER,
        "an_access_token_of_another_key_is_refused": HEADER,
        **dict.fromkeys(
            (
                "a_challenge_in_a_header_may_have_status_400",
                "a_challenge_in_a_body_is_answered_once",
                "a_challenge_in_a_body_may_have_status_401",
                "a_challenge_in_a_body_of_type_text_is_seen",
                "a_challenge_in_a_body_of_type_json_with_a_charset_is_seen",
                "a_challenge_in_a_body_of_type_problem_json_is_seen",
                "a_challenge_in_a_body_of_type_html_is_seen",
                "a_challenge_in_a_body_without_a_type_is_seen",
                "a_challenge_in_a_body_with_gzip_is_seen",
                "a_challenge_in_a_body_with_deflate_is_seen",
                "a_challenge_in_a_body_in_parts_is_seen",
                "a_challenge_among_others_is_seen",
                "a_challenge_on_a_line_of_its_own_is_seen",
            ),
            "the library sees a challenge where a 401's WWW-Authenticate begins, and nowhere else",
        ),
        **dict.fromkeys(
            (
                "a_challenge_without_a_nonce_is_given_back",
                "a_refusal_for_another_reason_is_given_back",
                "a_nonce_with_a_space_is_none",
                "a_nonce_with_a_quote_is_none",
                "a_nonce_that_is_empty_is_none",
                "two_nonces_are_none",
                "a_nonce_that_is_refused_without_another_is_forgotten",
            ),
            "the library sends a request again for each 401 that says DPoP",
        ),
        **dict.fromkeys(
            (
                "a_challenges_cookie_goes_with_the_retry",
                "a_challenges_cookie_is_kept",
                "a_challenges_cookie_goes_beside_others",
                "the_last_answers_cookie_wins",
            ),
            "the library's second attempt has no cookies of the first one's",
        ),
        **dict.fromkeys(
            (
                "challenges_in_headers_leave_the_connection_open",
                "challenges_in_bodies_leave_the_connection_open",
            ),
            "the library doesn't read a challenge before it sends the request again",
        ),
        **dict.fromkeys(
            (
                "each_hop_has_a_proof_of_its_own",
                "a_redirect_within_an_origin_keeps_the_access_token",
                "a_307_within_an_origin_carries_the_body",
                "a_307_within_an_origin_carries_a_file",
                "a_307_to_a_listed_origin_carries_the_body_beside_a_proof",
                "a_307_to_an_unlisted_origin_does_not_carry_the_body",
                "a_308_within_an_origin_carries_the_body",
                "a_308_to_a_listed_origin_carries_the_body_beside_a_proof",
                "a_308_to_an_unlisted_origin_does_not_carry_the_body",
                "a_303_to_an_unlisted_origin_carries_nothing",
                "a_redirect_to_an_unlisted_origin_carries_no_access_token_and_no_proof",
                "a_redirect_to_another_listed_origin_carries_no_access_token",
                "a_redirect_back_from_another_server_brings_no_access_token_along",
                "a_challenge_behind_a_redirect_is_answered",
                "a_challenge_before_a_redirect_is_answered",
            ),
            "the library follows redirects with the proof of the request that led there",
        ),
        **dict.fromkeys(
            (
                "a_proof_that_is_refused_for_a_wrong_clock_says_so",
                "a_server_that_is_behind_gets_a_proof_dated_back",
                "a_proof_that_is_refused_without_a_date_may_be_the_clocks_fault",
            ),
            "of refusals the key hears of 401 alone",
        ),
        **dict.fromkeys(
            (
                "a_request_to_a_listed_server_carries_one_proof",
                "an_unlisted_server_gets_no_proof",
                "the_clients_own_authentication_stays",
            ),
            "the library signs no request without an access token, and each that has one",
        ),
        "an_access_token_with_a_newline_is_refused": (
            "the library takes a newline for a part of an access token, and shows both"
        ),
    }

    @contextmanager
    def client(self, agent: AgentClient, case: Case) -> Iterator[Client]:
        with requests.Session() as http:
            yield Client(http, agent, case["client"])

    def send(self, client: Client, request: Request, release: Callable[[], None]) -> Came:
        with client.http.request(
            request.get("method", "GET"),
            request["url"],
            headers=dict(request.get("headers", [])),
            auth=client.token(request),
            allow_redirects=request.get("follow", True),
            timeout=10,
            stream=True,
            **body_of(request.get("body")),
        ) as response:
            came: Came = {"status": response.status_code, "body": ""}
            read = request.get("read", "all")
            if read == "all":
                came["body"] = response.content.decode()
            elif read == "first":
                parts = response.iter_content(None)
                came["body"] = next(parts).decode()
                release()
                came["body"] += b"".join(parts).decode()
            return came

    def came(self, error: Exception) -> Came:
        if isinstance(error, InvalidDPoPAccessToken):
            return super().came(ConfigurationError(str(error)))
        return super().came(error)
