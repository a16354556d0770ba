import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { after, before, describe, test } from 'node:test';
import { inspect } from 'node:util';
import { EmbeddedJWK, calculateJwkThumbprint, jwtVerify } from 'jose';
import { AgentClient, DPoPAgentError, isKeyUnusable } from '../src/index.js';
import { Agent, agentWith, claims, rejected } from './started.js';

const API = 'https://api.example.com/v1/me';
const INDEX = new URL('../src/index.js', import.meta.url).href;
let agent;
let client;

describe('the client', () => {
  before(async () => {
    agent = await agentWith('default', 'other');
    client = agent.client();
  });
  after(() => agent.close());

  test('a proof is one by RFC 9449, of the request and by the key', async () => {
    const { jkt } = await client.generation();
    const proof = await client.proof('POST', new URL(`${API}?q=1#f`), { accessToken: 'at-1', jkt, nonce: 'n-1' });

    const { payload, protectedHeader } = await jwtVerify(String(proof), EmbeddedJWK, { typ: 'dpop+jwt', algorithms: ['ES256'] });
    assert.equal(await calculateJwkThumbprint(protectedHeader.jwk), jkt);
    const { iat, jti, ...said } = payload;
    assert.deepEqual(said, { htm: 'POST', htu: API, nonce: 'n-1', ath: createHash('sha256').update('at-1').digest('base64url') });
    assert.equal(proof.iat, iat);
    assert.deepEqual([proof.key, proof.jkt, proof.state, proof.nonce], ['default', jkt, 'active', 'n-1']);
  });

  test('a nonce is the one that was observed, the one that was given, or none', async () => {
    await client.observe([{ htu: `${API}?secret`, nonce: 'seen' }]);
    assert.equal(claims(await client.proof('GET', API)).nonce, 'seen');
    assert.equal(claims(await client.proof('GET', API, { nonce: null })).nonce, undefined);
    assert.equal(claims(await client.proof('GET', API, { seen: [{ htu: API, nonce: 'newer' }] })).nonce, 'newer');
  });

  test('a refusal is typed, and says what to do next', async () => {
    const error = await rejected(client.proof('GET', 'https://api.example.com/a/%2e%2e/b'));
    assert.ok(error instanceof DPoPAgentError);
    assert.deepEqual([error.type, error.retry, error.hint], ['htu_refused', 'no', 'give the path without . and ..']);
    assert.equal(error.message, "the target URI's path has a dot segment; give the path without . and ..");
    assert.ok(!isKeyUnusable(error));
    assert.ok(isKeyUnusable(await rejected(client.proof('GET', API, { key: 'nobody' }))));
    assert.equal((await rejected(client.generation('nobody'))).type, 'key_unknown');
  });

  test('no access token is sent to the agent or shown', async () => {
    for (const accessToken of ['at secret', 'at-secret\n', 'at-secret\r\nX: 1', '', 'ät-secret']) {
      const error = await rejected(client.proof('GET', API, { accessToken }));
      assert.equal(error.type, 'configuration');
      assert.ok(!inspect(error).includes('secret'));
    }
    const error = await rejected(client.proof('GET', API, { accessToken: 'a', ath: 'b' }));
    assert.equal(error.type, 'configuration');
  });

  test('nothing but a header shows a proof', async () => {
    const proof = await client.proof('GET', API);
    const signature = String(proof).split('.')[2];
    for (const shown of [inspect(proof), inspect({ proof }, { showHidden: true, depth: 9 }), JSON.stringify(proof)]) {
      assert.ok(!shown.includes(signature), shown);
    }
    assert.equal(`${proof}`.split('.').length, 3);
  });

  test('200 requests at once are each answered, by one connection', async () => {
    const busy = agent.client();
    const proofs = await Promise.all(Array.from({ length: 200 }, (_, n) => busy.proof('GET', `${API}/${n}`)));
    assert.deepEqual(proofs.map((proof) => claims(proof).htu), Array.from({ length: 200 }, (_, n) => `${API}/${n}`));
    const held = execFileSync('sh', ['-c', `ls -l /proc/${process.pid}/fd | grep -c socket: || true`], { encoding: 'utf8' });
    assert.ok(Number(held) < 32, held);
  });

  test('a listing has the keys of all pages', async () => {
    assert.deepEqual((await client.keys()).map(({ key }) => key), ['default', 'other']);
    const { jkt, generation, jwk } = await client.generation('other');
    assert.deepEqual([generation, jwk.kty, jkt.length], [1, 'EC', 43]);
  });

  test('an agent that was started anew is found again', async () => {
    const own = await agentWith('default');
    try {
      const kept = own.client();
      const { jkt } = await kept.proof('GET', API);
      await own.stop();
      const error = await rejected(kept.proof('GET', API));
      assert.deepEqual([error.type, error.retry], ['agent_unavailable', 'later']);
      await own.start();
      assert.equal((await kept.proof('GET', API)).jkt, jkt);
    } finally {
      await own.close();
    }
  });

  test('a request that was under way when the agent ended is refused, not hung', async () => {
    const own = await agentWith('default');
    try {
      const kept = own.client();
      await kept.hello();
      const many = Promise.allSettled(Array.from({ length: 200 }, () => kept.proof('GET', API)));
      await own.stop();
      const refused = (await many).filter(({ reason }) => reason);
      assert.deepEqual(new Set(refused.map(({ reason }) => reason.type)), new Set(['agent_unavailable']));
    } finally {
      await own.close();
    }
  });

  test('a call that is given up is dropped, and others go on', async () => {
    const own = agent.client();
    await own.hello();
    const giving = new AbortController();
    const given = own.proof('GET', API, { signal: giving.signal });
    const other = own.proof('GET', API);
    giving.abort(new Error('enough'));
    assert.equal((await rejected(given)).message, 'enough');
    assert.equal((await other).key, 'default');
    assert.equal((await rejected(own.proof('GET', API, { signal: AbortSignal.abort(new Error('before')) }))).message, 'before');
    assert.equal((await own.proof('GET', API)).key, 'default');
  });

  test('a closed client connects anew', async () => {
    const own = agent.client();
    await own.hello();
    own.close();
    assert.equal((await own.proof('GET', API)).key, 'default');
  });

  test('an idle client keeps no process, and one that waits does', async () => {
    const script = `
      import { AgentClient } from ${JSON.stringify(INDEX)};
      const client = new AgentClient();
      console.log(String(await client.proof('GET', ${JSON.stringify(API)})).length > 100);
    `;
    const child = spawn(process.execPath, ['--input-type=module', '--eval', script], { env: agent.env, stdio: ['ignore', 'pipe', 'inherit'] });
    let shown = '';
    child.stdout.on('data', (text) => (shown += text));
    const [status] = await once(child, 'exit');
    assert.deepEqual([status, shown], [0, 'true\n']);
  });

  test('a locked store and a suspended key are told as what they are', async () => {
    const own = await agentWith('default', 'away');
    try {
      await own.admin.call('key.suspend', { key: 'away', generation: 1 });
      assert.match((await rejected(own.client().proof('GET', API, { key: 'away' }))).type, /no_active|key_suspended/);
      await own.admin.call('lock', {});
      const error = await rejected(own.client().proof('GET', API));
      assert.equal(error.type, 'locked');
      assert.match(error.hint, /dpop-agent unlock/);
    } finally {
      await own.close();
    }
  });

  test('with an access token and two generations the agent asks which, and a rotation keeps the old one signing', async () => {
    const own = await agentWith('default');
    try {
      const kept = own.client();
      const old = await kept.generation();
      await own.admin.call('key.rotate', { key: 'default' });
      const error = await rejected(kept.proof('GET', API, { accessToken: 'at-1' }));
      assert.equal(error.type, 'jkt_required');
      assert.equal(error.details.choices.length, 2);
      const proof = await kept.proof('GET', API, { accessToken: 'at-1', jkt: old.jkt });
      assert.deepEqual([proof.jkt, proof.state], [old.jkt, 'draining']);
      assert.ok(proof.drainLeftS > 0);
    } finally {
      await own.close();
    }
  });

  test('a timeout is in milliseconds, and at most an hour', () => {
    for (const timeoutMs of [0, -1, NaN, 3_600_001]) {
      assert.throws(() => new AgentClient({ path: '/nowhere', timeoutMs }), { type: 'configuration' });
    }
  });
});
