"""What httpx and httpx2 have in common: a transport that signs each hop, an auth that chooses.

Their classes are unrelated and have the same names. All that is used of them stands in `names`;
`client/httpx.py` and `client/httpx2.py` say which ones.

The transport signs because redirects run inside the library's `Auth`: an auth's proof would go on
to the next URL, wherever that is. The auth never sees the agent; where the agent refuses a
generation, the transport asks the request's own grant for another access token.

The auth only names the access token; the transport alone writes the Authorization header, and only
beside a proof. The library may take another transport for a request, or for a redirect of it
(`proxy=`, `mounts=`): a `Guard` (`presented`) keeps that from sending what isn't for it.
"""
