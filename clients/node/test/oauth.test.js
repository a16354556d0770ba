// oauth4webapi and openid-client by `customFetch`, against oidc-provider with a nonce in every proof.
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { inspect } from 'node:util';
import * as oauth from 'oauth4webapi';
import * as openid from 'openid-client';
import { createFetch, customFetch, proofOf, requireBound } from '../src/index.js';
import { agentWith, authorizationServer, rejected, serverWith } from './started.js';

const CALLBACK = 'http://127.0.0.1/callback';
const SECRET = 'not-much-of-a-secret';
const NATIVE = { client_id: 'native' };

describe('a real authorization server', () => {
  let agent;
  let client;
  let jkt;
  let server;
  before(async () => {
    agent = await agentWith('default');
    client = agent.client();
  });
  after(() => agent.close());
  beforeEach(async (context) => {
    jkt = (await client.generation()).jkt;
    server = await authorizationServer();
    context.after?.(() => server.close());
  });

  const refusals = () => server.log().split('\n').filter((line) => /^response \S+ \S+ 4/.test(line));

  test('oauth4webapi gets a bound access token, refreshes it and presents it', async () => {
    const send = customFetch(client, { origins: [server.origin], jkt });
    const { as, options, tokens } = await granted(send);
    const again = await oauth.refreshTokenGrantRequest(as, NATIVE, oauth.None(), tokens.refresh_token, options);
    const refreshed = requireBound(await oauth.processRefreshTokenResponse(as, NATIVE, again), { jkt });

    const me = await oauth.userInfoRequest(as, NATIVE, refreshed.access_token, options);
    assert.equal((await oauth.processUserInfoResponse(as, NATIVE, 'alice', me)).sub, 'alice');
    assert.equal(refusals().length, 1, 'the first contact');
  });

  /** A grant by an authorization code with PKCE, pushed (RFC 9126), that oauth4webapi asks for. */
  async function granted(send) {
    const options = { [oauth.customFetch]: send, [oauth.allowInsecureRequests]: true };
    const issuer = new URL(server.origin);
    const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, options));
    const [verifier, state] = [oauth.generateRandomCodeVerifier(), oauth.generateRandomState()];
    const asked = new URLSearchParams({
      response_type: 'code',
      redirect_uri: CALLBACK,
      scope: 'openid',
      state,
      code_challenge: await oauth.calculatePKCECodeChallenge(verifier),
      code_challenge_method: 'S256',
      dpop_jkt: jkt,
    });
    const response = await oauth.pushedAuthorizationRequest(as, NATIVE, oauth.None(), asked, options);
    const { request_uri } = await oauth.processPushedAuthorizationResponse(as, NATIVE, response);
    const back = await loggedIn(`${as.authorization_endpoint}?${new URLSearchParams({ client_id: 'native', request_uri })}`);
    const params = oauth.validateAuthResponse(as, NATIVE, back, state);
    const answer = await oauth.authorizationCodeGrantRequest(as, NATIVE, oauth.None(), params, CALLBACK, verifier, options);
    return { as, options, tokens: requireBound(await oauth.processAuthorizationCodeResponse(as, NATIVE, answer), { jkt }) };
  }

  test('openid-client gets a bound access token, refreshes it and presents it', async () => {
    const config = await openid.discovery(new URL(server.origin), 'native', undefined, openid.None(), {
      [openid.customFetch]: customFetch(client, { origins: [server.origin], jkt }),
      execute: [openid.allowInsecureRequests],
    });
    const verifier = openid.randomPKCECodeVerifier();
    const url = await openid.buildAuthorizationUrlWithPAR(config, {
      redirect_uri: CALLBACK,
      scope: 'openid',
      code_challenge: await openid.calculatePKCECodeChallenge(verifier),
      code_challenge_method: 'S256',
      dpop_jkt: jkt,
    });
    const tokens = requireBound(await openid.authorizationCodeGrant(config, await loggedIn(url), { pkceCodeVerifier: verifier }), { jkt });
    const refreshed = requireBound(await openid.refreshTokenGrant(config, tokens.refresh_token), { jkt });
    assert.equal((await openid.fetchUserInfo(config, refreshed.access_token, 'alice')).sub, 'alice');
    const answer = await openid.fetchProtectedResource(config, refreshed.access_token, new URL(`${server.origin}/me`), 'GET');
    assert.equal((await answer.json()).sub, 'alice');
    assert.equal(refusals().length, 1, 'the first contact');
  });

  test('16 requests at once, a rotation and a restarted agent cost one challenge, none, and one', async () => {
    const send = createFetch(client, { origins: [server.origin] });
    const token = () =>
      send(`${server.origin}/token`, {
        method: 'POST',
        headers: { Authorization: `Basic ${btoa(`confidential:${SECRET}`)}` },
        body: new URLSearchParams({ grant_type: 'client_credentials' }),
      });
    const atOnce = async () => {
      for (const { status } of await Promise.all(Array.from({ length: 16 }, token))) assert.equal(status, 200);
    };
    await atOnce();
    await atOnce();
    assert.equal(refusals().length, 1, 'the first contact');

    const { tokens } = await granted(customFetch(client, { origins: [server.origin], jkt }));
    await agent.admin.call('key.rotate', { key: 'default' });
    const me = await send(`${server.origin}/me`, { dpop: { accessToken: tokens.access_token, jkt } });
    assert.deepEqual([me.status, proofOf(me).jkt, proofOf(me).state], [200, jkt, 'draining']);
    assert.notEqual(proofOf(await token()).jkt, jkt);
    assert.equal(refusals().length, 1);

    await agent.stop();
    await agent.start();
    await atOnce();
    await atOnce();
    assert.equal(refusals().length, 2, "and one after the agent's restart");
  });

  test('an access token in a Request goes out as DPoP, or not at all', async () => {
    const listed = await serverWith((request, answer) => answer.end());
    const other = await serverWith((request, answer) => answer.end());
    try {
      const send = customFetch(client, { origins: [listed.origin], jkt });
      const headers = { Authorization: 'Bearer at-secret', 'X-Mine': '1' };
      await send(new Request(`${listed.origin}/me`, { method: 'POST', body: 'a=b', headers }));
      const [{ method, body, headers: came }] = listed.seen;
      assert.deepEqual([method, body, came.authorization, came['x-mine']], ['POST', 'a=b', 'DPoP at-secret', '1']);
      const error = await rejected(send(new Request(`${other.origin}/me`, { headers })));
      assert.equal(error.type, 'configuration');
      assert.deepEqual(other.seen, []);
    } finally {
      await listed.close();
      await other.close();
    }
  });

  test('an access token goes to no server that is not listed, as DPoP or as Bearer', async () => {
    const other = await serverWith((request, answer) => answer.end());
    try {
      const send = customFetch(client, { origins: [server.origin] });
      for (const scheme of ['Bearer', 'bearer', 'DPoP']) {
        const error = await rejected(send(`${other.origin}/me`, { headers: { Authorization: `${scheme} at-secret` } }));
        assert.equal(error.type, 'configuration');
        assert.ok(!error.stack.includes('at-secret'));
      }
      for (const Authorization of ['Bearer at-secret\r\nX: 1', 'Bearer at-secret\n', 'Bearer at secret', 'Bearer at-secret€']) {
        const error = await rejected(send(`${server.origin}/me`, { headers: { Authorization } }));
        assert.ok(!`${error.stack} ${inspect(error)}`.includes('secret'), error.stack);
      }
      assert.deepEqual(other.seen, []);
    } finally {
      await other.close();
    }
  });

  test('a token response that bound nothing, or another key, is refused', () => {
    const jwt = `e30.${btoa(JSON.stringify({ cnf: { jkt: 'another' } })).replaceAll('=', '')}.e30`;
    for (const response of [
      { access_token: 'at', token_type: 'Bearer' },
      { access_token: 'at' },
      { token_type: 'DPoP' },
      { access_token: 'at', token_type: 'DPoP', cnf: { jkt: 'another' } },
      { access_token: jwt, token_type: 'DPoP' },
    ]) {
      assert.throws(() => requireBound(response, { jkt }), { type: 'token_not_bound' });
    }
    const good = { access_token: 'at', token_type: 'dpop', cnf: { jkt } };
    assert.equal(requireBound(good, { jkt }), good);
  });
});

/** What somebody does in a browser; the URL with which it comes back to the application. */
async function loggedIn(start) {
  const cookies = new Map();
  let [url, init] = [start, {}];
  for (let step = 0; step < 10; step += 1) {
    const headers = { Cookie: Array.from(cookies, ([name, value]) => `${name}=${value}`).join('; ') };
    const response = await fetch(url, { ...init, headers, redirect: 'manual' });
    for (const line of response.headers.getSetCookie()) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
      cookies.set(name, value);
    }
    const location = response.headers.get('Location');
    const prompt = /name="prompt" value="([a-z]+)"/.exec(await response.text())?.[1];
    if (location?.startsWith(CALLBACK)) return new URL(location);
    if (location) [url, init] = [new URL(location, url), {}];
    else init = { method: 'POST', body: new URLSearchParams({ prompt, login: 'alice', password: 'any' }) };
  }
  throw new Error(`the log-in led to ${url}`);
}
