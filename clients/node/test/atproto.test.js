// `@atproto/oauth-client` with our Key, against its own code; its proofs are judged by jose.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { Key, OAuthClient } from '@atproto/oauth-client';
import { calculateJwkThumbprint, EmbeddedJWK, jwtVerify } from 'jose';
import { atprotoKeys } from '../src/index.js';
import { agentWith, rejected, serverWith } from './started.js';

const DID = 'did:plc:aaaaaaaaaaaaaaaaaaaaaaaa';

describe('the client of Bluesky', () => {
  let agent;
  let keys;
  let pds;
  const seen = [];
  before(async () => {
    agent = await agentWith('alice');
    keys = atprotoKeys(Key, agent.client(), { key: 'alice' });
    pds = await serverWith(async (request, answer) => {
      const said = await answerOf(request, seen, pds.origin);
      answer.writeHead(said.status ?? 200, { 'Content-Type': 'application/json', ...said.headers });
      answer.end(JSON.stringify(said.body));
    });
  });
  after(async () => {
    await pds.close();
    await agent.close();
  });

  test('a log-in, a session, a refresh and one that is restored later are signed by the agent, by one generation', async () => {
    const states = new Map();
    const stored = new Map();
    const client = clientOf(pds, keys, states, stored);
    const url = await client.authorize(pds.origin, { scope: 'atproto' });
    assert.equal(url.searchParams.get('request_uri'), 'urn:example:1');
    const [state] = states.keys();
    const { session } = await client.callback(new URLSearchParams({ code: 'code-1', state, iss: pds.origin }));
    const me = await session.fetchHandler('/xrpc/me?secret=1', { method: 'GET' });
    assert.equal(me.status, 200);

    const kept = JSON.parse(JSON.stringify([...stored], (name, value) => (name === 'dpopKey' ? value.jkt : value)));
    await agent.admin.call('key.rotate', { key: 'alice' });
    const restored = new Map();
    for (const [sub, { dpopKey, ...rest }] of kept) restored.set(sub, { ...rest, dpopKey: await keys.restoreKey(dpopKey) });
    const later = await clientOf(pds, keys, new Map(), restored).restore(DID, true); // refreshes
    assert.equal((await later.fetchHandler('/xrpc/me')).status, 200);

    const paths = seen.map(({ path, nonce }) => `${path} ${nonce}`);
    assert.deepEqual(paths, ['/par undefined', '/par n-1', '/token n-1', '/xrpc/me n-1', '/token n-1', '/xrpc/me n-1']);
    assert.deepEqual(new Set(seen.map(({ jkt }) => jkt)).size, 1);
    assert.deepEqual(new Set(seen.map(({ jti }) => jti)).size, seen.length);
    for (const { jti } of seen) assert.equal(Buffer.from(jti, 'base64url').length, 16, "the agent's own");
    assert.deepEqual(seen.map(({ ath }) => ath !== undefined), [false, false, false, true, false, true]);
  });

  test('a key is no private one, and signs proofs and nothing else', async () => {
    const key = await keys.createKey(['ES256']);
    assert.ok(key instanceof Key);
    assert.deepEqual([key.isPrivate, key.privateJwk, key.algorithms], [false, undefined, ['ES256']]);
    assert.equal(await calculateJwkThumbprint(key.bareJwk), key.jkt);
    const error = await rejected(key.createJwt({ alg: 'ES256', typ: 'JWT' }, { iss: 'me', aud: 'https://as.example.com' }));
    assert.equal(error.type, 'configuration');
    assert.equal((await rejected(key.verifyJwt('a.b.c'))).type, 'configuration');
  });

  test('an algorithm that the server does not take, and a generation that is not there, are told', async () => {
    assert.equal((await rejected(keys.createKey(['ES256K', 'RS256']))).type, 'algorithm_unsupported');
    assert.equal((await rejected(keys.restoreKey('x'.repeat(43)))).type, 'key_unknown');
    assert.equal((await rejected(atprotoKeys(Key, agent.client(), { key: 'nobody' }).createKey(['ES256']))).type, 'key_unknown');
  });
});

function clientOf(pds, { createKey }, states, sessions) {
  return new OAuthClient({
    responseMode: 'query',
    allowHttp: true,
    identityResolver: { resolve: async () => ({ did: DID, didDoc: document(pds.origin), handle: 'alice.example' }) },
    stateStore: store(states),
    sessionStore: store(sessions),
    clientMetadata: {
      client_id: 'http://localhost?redirect_uri=http%3A%2F%2F127.0.0.1%2Fcallback&scope=atproto',
      redirect_uris: ['http://127.0.0.1/callback'],
      response_types: ['code'],
      grant_types: ['authorization_code', 'refresh_token'],
      scope: 'atproto',
      token_endpoint_auth_method: 'none',
      application_type: 'native',
      dpop_bound_access_tokens: true,
    },
    runtimeImplementation: {
      createKey,
      getRandomValues: (length) => crypto.getRandomValues(new Uint8Array(length)),
      digest: async (data, { name }) => new Uint8Array(await crypto.subtle.digest(name.replace('sha', 'SHA-'), data)),
      requestLock: async (_, work) => work(),
    },
  });
}

function store(map) {
  return { get: (name) => map.get(name), set: (name, value) => void map.set(name, value), del: (name) => void map.delete(name) };
}

function document(origin) {
  return {
    id: DID,
    alsoKnownAs: ['at://alice.example'],
    service: [{ id: '#atproto_pds', type: 'AtprotoPersonalDataServer', serviceEndpoint: origin }],
  };
}

/** A server that is both: it wants a nonce in every proof, and has jose judge them. */
async function answerOf({ method, url, headers }, seen, origin) {
  const { pathname } = new URL(url, origin);
  if (pathname === '/.well-known/oauth-protected-resource') return { body: { resource: origin, authorization_servers: [origin] } };
  if (pathname === '/.well-known/oauth-authorization-server') return { body: metadata(origin) };
  const { payload, protectedHeader } = await jwtVerify(headers.dpop, EmbeddedJWK, { typ: 'dpop+jwt', algorithms: ['ES256'], maxTokenAge: 5 });
  assert.deepEqual([payload.htm, payload.htu], [method, origin + pathname]);
  const { nonce, jti, ath } = payload;
  seen.push({ path: pathname, nonce, jti, ath, jkt: await calculateJwkThumbprint(protectedHeader.jwk) });
  if (nonce !== 'n-1') return { status: 400, headers: { 'DPoP-Nonce': 'n-1' }, body: { error: 'use_dpop_nonce' } };
  if (pathname === '/par') return { status: 201, body: { request_uri: 'urn:example:1', expires_in: 60 } };
  if (pathname === '/token') return { body: { access_token: `at-${seen.length}`, token_type: 'DPoP', refresh_token: 'rt-1', sub: DID, scope: 'atproto', expires_in: 3600 } };
  assert.match(headers.authorization, /^DPoP at-\d+$/);
  return { body: { did: DID } };
}

function metadata(origin) {
  return {
    issuer: origin,
    authorization_endpoint: `${origin}/authorize`,
    token_endpoint: `${origin}/token`,
    pushed_authorization_request_endpoint: `${origin}/par`,
    require_pushed_authorization_requests: true,
    response_types_supported: ['code'],
    grant_types_supported: ['authorization_code', 'refresh_token'],
    code_challenge_methods_supported: ['S256'],
    token_endpoint_auth_methods_supported: ['none'],
    scopes_supported: ['atproto'],
    authorization_response_iss_parameter_supported: true,
    dpop_signing_alg_values_supported: ['ES256'],
    client_id_metadata_document_supported: true,
    protected_resources: [origin],
  };
}
