"""requests_oauth2client: a DPoPKey whose private key is the agent's.

The library asks the key for proofs, and hands it what challenges it; all else is the library's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

try:
    import jwskate
    from requests.utils import rewind_body
    from requests_oauth2client import DPoPKey, DPoPToken
except ModuleNotFoundError as e:
    raise ImportError(
        "requests_oauth2client isn't installed; install it: pip install requests_oauth2client"
    ) from e

from dpop_agent.client.answers import ABSENT
from dpop_agent.client.hop import DEFAULT_KEY, Origins
from dpop_agent.errors import ConfigurationError, DPoPAgentError, KeyUnknown, NonceRequired
from dpop_agent.jose import b64url_decode, json_object
from dpop_agent.proof import is_nonce

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    import requests

    from dpop_agent.client.sync import AgentClient


class AgentDPoPKey(DPoPKey):
    """One generation of a key: the agent signs by it, and remembers nonces, by server.

        client = OAuth2Client(
            f"{AS}/token",
            (ID, SECRET),
            dpop_bound_access_tokens=True,
            dpop_key_generator=lambda alg: AgentDPoPKey(agent, key="default", origins=[AS, API]),
        )

    `authorization_request` makes a private key of its own unless it is given `dpop_key=`. An access
    token of before is `AgentDPoPToken(…, _dpop_key=AgentDPoPKey(agent, jkt=jkt, origins=…))`.

    Where another key has its private key, this one has its public key: what the library writes of
    an access token (`as_dict`, a serializer) has nothing secret of the key, and reading it back is
    refused. The library follows redirects with the proof of the request that led there, and sends
    a request again for each 401, once: DPoPAdapter and DPoPAuth do neither.

    Args:
        agent: gives the proofs.
        key: the key's name; `default` where neither it nor `jkt` is given.
        jkt: the generation; the one that is active now where None.
        origins: the authorization servers and resource servers that get proofs.

    Raises:
        KeyUnknown, NoActive: there is no such generation.
        ConfigurationError: `origins` is none; and, for a request, an access token would go to an
            origin that isn't listed. Nothing is sent then.
        NonceRequired: for a request, the server wants a nonce, and its body can't be sent twice.
        DPoPAgentError: for a request, what `AgentClient.proof` raises.
    """

    def __init__(
        self,
        agent: AgentClient,
        *,
        key: str | None = None,
        jkt: str | None = None,
        origins: Iterable[str],
    ) -> None:
        self._agent = agent
        self._origins = Origins(origins)
        alg, jwk = _public_key(agent, key, jkt)
        self.__attrs_init__(  # the library's own way in
            alg=alg,
            private_key=jwskate.Jwk(jwk),
            jti_generator=_never,
            iat_generator=_never,
            jwt_typ="dpop+jwt",
            dpop_token_class=AgentDPoPToken,
            as_nonce=None,
            rs_nonce=None,
        )

    def proof(
        self, htm: str, htu: str, ath: str | None = None, nonce: str | None = None
    ) -> jwskate.SignedJwt:
        """A proof by the agent, which has the server's nonce where none is given."""
        parts = urlsplit(htu)
        authority = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        if not self._origins.has(authority):
            raise ConfigurationError(
                f"a DPoP proof was asked for {authority}, which isn't among the origins",
                hint="add it to origins=[…] if it may have this access token",
            )
        known = ABSENT if nonce is None else nonce
        uri = f"{authority}{parts.path}"
        proof = self._agent.proof(htm, uri, jkt=self.dpop_jkt, ath=ath, nonce=known)
        return jwskate.SignedJwt(str(proof))

    def handle_as_provided_dpop_nonce(self, response: requests.Response) -> None:
        """Tell the agent what the authorization server answered; the library asks for a nonce."""
        self.hear(response, refused=True)

    def handle_rs_provided_dpop_nonce(self, response: requests.Response) -> None:
        """Tell the agent what the resource server answered, and have the request's body again.

        Raises:
            NonceRequired: the body can't be sent twice, and the library is about to.
            UnrewindableBodyError: so it is, and the server wants something else.
        """
        self.hear(response, refused=True)
        request = response.request
        if request.body is None or isinstance(request.body, str | bytes):
            return
        if not hasattr(request.body, "seek") and (nonce := _given(response)) is not None:
            raise NonceRequired(
                "the server asks for a nonce in the proof, but the body can't be sent twice",
                nonce=nonce,
            )
        rewind_body(request)

    def hear(self, response: requests.Response, *, refused: bool = False) -> None:
        """Take the nonce of a response, for whoever asks that server next (RFC 9449 section 8.2).

        Args:
            response: any of a server's.
            refused: whether its request was refused, so that the nonce in it may be too old.
        """
        used, given = _used(response.request), _given(response)
        seen: dict[str, str | None] = {"htu": response.request.url}
        if given is not None and given != used:
            seen["nonce"] = given
        elif refused and used is not None:
            seen["refused_nonce"] = used
        else:
            return
        try:
            self._agent.observe([seen])
        except DPoPAgentError:
            pass  # the response is worth more than the nonce


class AgentDPoPToken(DPoPToken):
    """An access token by such a key, which hears of each response."""

    def _response_hook(self, response: requests.Response, **kwargs: Any) -> requests.Response:
        # The library puts this among the request's hooks while requests walks through them: with a
        # hook of somebody else's there, it would come by again, and send for each 401 without end.
        if response.history:
            return response
        try:
            last = super()._response_hook(response, **kwargs)
        except BaseException:
            response.close()
            raise
        if last is not response:
            response.close()
            last.history = [response]  # a session takes cookies from there
        if isinstance(self.dpop_key, AgentDPoPKey):
            self.dpop_key.hear(last)
        return last


def _public_key(agent: AgentClient, key: str | None, jkt: str | None) -> tuple[str, dict[str, str]]:
    if jkt is None:
        active = agent.generation(key or DEFAULT_KEY)
        return active.alg, active.jwk
    for each in agent.keys(key):
        for generation in each["generations"]:
            if generation["jkt"] == jkt and "jwk" in generation:
                return each["alg"], generation["jwk"]
    raise KeyUnknown(f"the agent has no generation {jkt}")


def _given(response: requests.Response) -> str | None:
    given = response.headers.get("DPoP-Nonce")
    return given if given is not None and is_nonce(given) else None


def _used(request: requests.PreparedRequest) -> str | None:
    """The nonce in the proof that was sent."""
    try:
        claims = json_object(b64url_decode(str(request.headers["DPoP"]).split(".")[1]))
    except (ValueError, KeyError, IndexError):
        return None
    nonce = claims.get("nonce")
    return nonce if isinstance(nonce, str) else None


def _never() -> Any:
    raise AssertionError("the agent alone writes jti and iat")
