// What `createFetch` does beyond the kit: fetch's own rules, where redirects lead, and what callers give it.
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { createFetch, proofOf } from '../src/index.js';
import { agentWith, claims, rejected, serverWith } from './started.js';

describe('the fetch', () => {
  let agent;
  let client;
  let server;
  let other;
  let answer;
  let send;
  before(async () => {
    agent = await agentWith('default');
    client = agent.client();
    server = await serverWith((...it) => answer(...it));
    other = await serverWith((...it) => answer(...it));
    send = createFetch(client, { origins: [server.origin] });
  });
  beforeEach(() => {
    server.seen.length = other.seen.length = 0;
    answer = (request, response) => response.end('ok');
  });
  after(async () => {
    await server.close();
    await other.close();
    await agent.close();
  });

  /** Answer the first request with a redirect. */
  const redirects = (status, location, headers = {}) => {
    let first = true;
    answer = (request, response) => {
      if (!first) return response.end('ok');
      first = false;
      response.writeHead(status, { Location: location, ...headers }).end();
    };
  };

  for (const [status, method, then] of [
    [301, 'POST', 'GET'],
    [302, 'POST', 'GET'],
    [303, 'POST', 'GET'],
    [303, 'PUT', 'GET'],
    [303, 'HEAD', 'HEAD'],
    [301, 'PUT', 'PUT'],
    [307, 'POST', 'POST'],
    [308, 'PATCH', 'PATCH'],
  ]) {
    test(`a ${status} after ${method} is followed with ${then}, as fetch does`, async () => {
      for (const by of [fetch, send]) {
        server.seen.length = 0;
        redirects(status, '/there#here');
        const body = method === 'HEAD' ? undefined : 'a=b';
        const response = await by(`${server.origin}/x`, { method, body, headers: { 'Content-Type': 'text/plain', 'X-Mine': '1' } });
        assert.deepEqual([response.status, response.redirected, response.url], [200, true, `${server.origin}/there${by === fetch ? new URL(response.url).hash : ''}`]);
        const [, second] = server.seen;
        const kept = then === method;
        assert.deepEqual([second.method, second.url, second.body, second.headers['content-type'], second.headers['x-mine']], [then, '/there', kept ? (body ?? '') : '', kept ? 'text/plain' : undefined, '1']);
      }
      const [first, second] = server.seen.map(({ headers }) => claims(headers.dpop));
      assert.deepEqual([first.htm, second.htm, second.htu], [method, then, `${server.origin}/there`]);
      assert.notEqual(first.jti, second.jti);
    });
  }

  test('redirects are followed 20 times, and not where the caller says so', async () => {
    answer = (request, response) => response.writeHead(302, { Location: '/again' }).end();
    const error = await rejected(send(server.origin));
    assert.ok(error instanceof TypeError);
    assert.equal(error.cause.message, 'redirect count exceeded');
    assert.equal(server.seen.length, 21);
    assert.ok((await rejected(send(server.origin, { redirect: 'error' }))) instanceof TypeError);
    const left = await send(server.origin, { redirect: 'manual' });
    assert.deepEqual([left.status, left.headers.get('Location')], [302, '/again']);
    assert.equal(new Set(server.seen.map(({ headers }) => headers.dpop)).size, 23);
  });

  test('a redirect that leads nowhere is an error or an answer, as for fetch', async () => {
    for (const location of ['ftp://example.com/', 'http://[', 'data:text/plain,x']) {
      redirects(302, location);
      assert.ok((await rejected(send(server.origin))) instanceof TypeError, location);
    }
    answer = (request, response) => response.writeHead(302).end('left');
    assert.equal(await (await send(server.origin)).text(), 'left');
  });

  test('an access token stays with the server that it was named for, whatever the redirect', async () => {
    const both = createFetch(client, { origins: [server.origin, other.origin] });
    redirects(307, `${other.origin}/there`);
    await both(server.origin, { dpop: { accessToken: 'at-1' }, headers: { Cookie: 'a=b' } });
    assert.equal(server.seen[0].headers.authorization, 'DPoP at-1');
    const [{ headers }] = other.seen;
    assert.deepEqual([headers.authorization, headers.cookie, claims(headers.dpop).ath], [undefined, undefined, undefined]);
    redirects(307, `${server.origin}/within`);
    await both(server.origin, { dpop: { accessToken: 'at-1' } });
    assert.equal(server.seen.at(-1).headers.authorization, 'DPoP at-1');
  });

  test("a stream's redirect and its challenge are refused, and nothing is sent twice", async () => {
    redirects(307, '/there');
    const stream = () => ({ method: 'POST', body: new Blob(['ab']).stream(), duplex: 'half' });
    assert.ok((await rejected(send(server.origin, stream()))) instanceof TypeError);
    redirects(303, '/there');
    assert.equal((await send(server.origin, stream())).status, 200);
    assert.deepEqual(server.seen.map(({ method, body }) => [method, body]), [['POST', 'ab'], ['POST', 'ab'], ['GET', '']]);
  });

  test('a Request is sent again with its length, its headers and its method', async () => {
    let challenged = false;
    answer = (request, response) => {
      if (challenged) return response.end('ok');
      challenged = true;
      response.writeHead(401, { 'WWW-Authenticate': 'DPoP error="use_dpop_nonce"', 'DPoP-Nonce': 'n-req' }).end();
    };
    const request = new Request(`${server.origin}/x?y=z`, { method: 'post', body: new URLSearchParams({ a: 'b' }), headers: { 'X-Mine': '1' } });
    const response = await send(request, { headers: { 'X-Mine': '2', 'Content-Type': 'application/x-www-form-urlencoded' } });
    assert.equal(await response.text(), 'ok');
    for (const seen of server.seen) {
      assert.deepEqual([seen.method, seen.url, seen.body, seen.headers['x-mine'], seen.headers['content-length']], ['POST', '/x?y=z', 'a=b', '2', '3']);
    }
    assert.equal(claims(server.seen[1].headers.dpop).nonce, 'n-req');
    assert.equal(new Set(server.seen.map(({ port }) => port)).size, 1, 'one connection');
  });

  test('the caller learns which generation signed, and of unlisted servers that none did', async () => {
    const { jkt } = await client.generation();
    assert.equal(proofOf(await send(server.origin)).jkt, jkt);
    assert.equal(proofOf(await send(other.origin)), undefined);
    assert.equal(other.seen[0].headers.dpop, undefined);
  });

  test('an aborted request waits for nothing, the agent included', async () => {
    assert.equal((await rejected(send(server.origin, { signal: AbortSignal.abort(new Error('before')) }))).message, 'before');
    assert.equal(server.seen.length, 0);
    const giving = new AbortController();
    answer = () => giving.abort(new Error('meanwhile'));
    assert.equal((await rejected(send(server.origin, { signal: giving.signal }))).message, 'meanwhile');
  });

  test('another fetch does the sending, and gets all that the caller said but for what is ours', async () => {
    const calls = [];
    const own = createFetch(client, {
      origins: ['https://api.example.com'],
      fetch: async (url, init) => {
        calls.push([url, init]);
        return new Response('ok');
      },
    });
    await own(new URL('https://API.example.com:443/a|b?c|d#e'), { dispatcher: 'mine', dpop: {}, redirect: 'follow', cache: 'no-store' });
    const [[url, { headers, ...init }]] = calls;
    assert.equal(url, 'https://api.example.com/a%7Cb?c|d#e');
    assert.deepEqual(init, { dispatcher: 'mine', cache: 'no-store', redirect: 'manual', method: 'GET', body: null });
    assert.equal(claims(headers.get('DPoP')).htu, 'https://api.example.com/a%7Cb');
  });

  for (const origins of [[], 'https://api.example.com', ['api.example.com'], ['https://api.example.com/v1'], ['https://*.example.com'], ['https://api.example.com?'], ['https://u:p@api.example.com'], ['ftp://api.example.com']]) {
    test(`${JSON.stringify(origins)} are no origins`, () => {
      assert.throws(() => createFetch(client, { origins }), (error) => ['configuration', 'htu_refused'].includes(error.type));
    });
  }

  test('a renewal is asked for once the server, or the agent, takes an access token no more', async () => {
    const own = await agentWith('default');
    try {
      const { jkt } = await own.client().generation();
      await own.admin.call('key.rotate', { key: 'default' });
      const next = await own.client().generation();
      const asked = [];
      const getToken = ({ refused }) => {
        asked.push(refused?.accessToken);
        return refused ? { accessToken: 'at-2', jkt: next.jkt } : { accessToken: 'at-1', jkt };
      };
      const granted = createFetch(own.client(), { origins: [server.origin], getToken });
      await own.admin.call('key.compromise', { key: 'default', generation: 1 });
      assert.equal((await granted(server.origin)).status, 200);
      assert.deepEqual([asked, server.seen.map(({ headers }) => headers.authorization)], [[undefined, 'at-1'], ['DPoP at-2']]);

      // Another of the caller's own, and servers that aren't listed, have nothing to do with it.
      await granted(server.origin, { headers: { Authorization: 'Basic bWU6Z2VoZWlt' } });
      await granted(other.origin);
      assert.equal(asked.length, 2);
      assert.equal(other.seen[0].headers.authorization, undefined);
    } finally {
      await own.close();
    }
  });
});
