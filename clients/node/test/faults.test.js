// What an agent does that isn't right, or is away: a scripted one in the agent's place.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, test } from 'node:test';
import { AgentClient } from '../src/index.js';
import { rejected } from './started.js';

const API = 'https://api.example.com/v1/me';
const PROOF = { proof: 'aa.bb.cc', key: 'default', jkt: 'j1', state: 'active', nonce: null };
let folder;
let server;
let connections;

beforeEach(() => {
  folder = mkdtempSync('/tmp/dpop-');
});
afterEach(() => {
  for (const socket of connections) socket.destroy();
  server.close();
  rmSync(folder, { recursive: true });
});

/** A client of an agent that does `on(request, socket)` for each line but `subscribe`. */
async function clientOf(on, { options = {}, onConnect = () => {} } = {}) {
  connections = [];
  server = createServer((socket) => {
    connections.push(socket);
    socket.on('error', () => {});
    onConnect(socket);
    const lines = createInterface(socket);
    lines.on('error', () => {});
    lines.on('line', (line) => {
      const request = JSON.parse(line);
      if (request.method !== 'subscribe') on(request, socket);
    });
  });
  server.listen(`${folder}/agent.sock`);
  await once(server, 'listening');
  return new AgentClient({ path: `${folder}/agent.sock`, timeoutMs: 300, ...options });
}

const says = (socket, message) => socket.write(`${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`);

for (const [what, result, jkt] of [
  ['no proof', { ...PROOF, proof: 1 }],
  ['a proof without its key', { ...PROOF, key: undefined }],
  ['a nonce that is none', { ...PROOF, nonce: 1 }],
  ['a proof by another generation', PROOF, 'j2'],
  ['a proof that would be two headers', { ...PROOF, proof: 'aa.bb.cc\r\nX: 1' }],
  ['a proof of two parts', { ...PROOF, proof: 'aa.bb' }],
]) {
  test(`an answer with ${what} is none`, async () => {
    const client = await clientOf(({ id }, socket) => says(socket, { id, result }));
    assert.equal((await rejected(client.proof('GET', API, { jkt }))).type, 'internal');
  });
}

for (const [what, bytes] of [
  ['no JSON', 'hello\n'],
  ['no object', '[]\n'],
  ['no UTF-8', Buffer.from('{"a":"\xff"}\n', 'latin1')],
  ['an id that nobody asked with', '{"jsonrpc":"2.0","id":99,"result":{}}\n'],
  ['an id of another kind', '{"jsonrpc":"2.0","id":"1","result":{}}\n'],
  ['a line without end', 'x'.repeat(70_000)],
]) {
  test(`an agent that says ${what} isn't asked there again`, async () => {
    const client = await clientOf((_, socket) => socket.write(bytes));
    assert.equal((await rejected(client.hello())).type, 'internal');
    assert.equal((await rejected(client.hello())).type, 'internal');
    assert.equal(connections.length, 2);
  });
}

test('answers come in any order, cut anywhere, and what is unknown is ignored', async () => {
  const waiting = [];
  const client = await clientOf((request, socket) => {
    waiting.push(request);
    if (waiting.length < 3) return;
    says(socket, { method: 'weather', params: { is: 'fine' } });
    const text = waiting.reverse().map(({ id, params }) => `${JSON.stringify({ jsonrpc: '2.0', id, later: 1, result: { ...PROOF, key: params.key, new: 'ü' } })}\r\n`);
    for (const byte of Buffer.from(text.join(''))) socket.write(Buffer.of(byte));
  });
  const proofs = await Promise.all(['a', 'b', 'c'].map((key) => client.proof('GET', API, { key })));
  assert.deepEqual(proofs.map(({ key }) => key), ['a', 'b', 'c']);
});

test('an older agent that refuses to tell of touches gives proofs', async () => {
  const client = await clientOf(({ id }, socket) => {
    says(socket, { id: 0, error: { code: -32601, message: 'no subscribe here', data: { type: 'method_not_found' } } });
    says(socket, { id, result: PROOF });
  });
  assert.equal(String(await client.proof('GET', API)), 'aa.bb.cc');
});

test('a connection that the agent left meanwhile is replaced, once', async () => {
  let answered = 0;
  const client = await clientOf(({ id }, socket) => {
    if (connections.length === 1 && answered > 0) return socket.destroy();
    answered += 1;
    says(socket, { id, result: PROOF });
  });
  await client.proof('GET', API);
  assert.equal(String(await client.proof('GET', API)), 'aa.bb.cc');
  assert.equal(connections.length, 2);
});

test('what mustn\'t happen twice isn\'t asked twice', async () => {
  let asked = 0;
  const client = await clientOf(({ id, method }, socket) => {
    if (method === 'hello') return says(socket, { id, result: {} });
    asked += 1;
    socket.destroy();
  });
  await client.hello();
  assert.equal((await rejected(client.call('key.rotate', { key: 'default' }))).type, 'agent_unavailable');
  assert.equal(asked, 1);
});

test('an answer that breaks off in the middle is told as one', async () => {
  const client = await clientOf((_, socket) => socket.end('{"jsonrpc":'));
  assert.match((await rejected(client.hello())).message, /in the middle of its answer/);
});

test('an agent that takes no more connections says so, though it closes at once', async () => {
  const client = await clientOf(() => {}, {
    onConnect: (socket) => {
      says(socket, { id: null, error: { code: -32000, message: 'too many', data: { type: 'too_many_connections', hint: 'later', retry: 'later', retry_after_ms: 250 } } });
      socket.end();
    },
  });
  const error = await rejected(client.hello());
  assert.deepEqual([error.type, error.retry, error.retryAfterMs], ['too_many_connections', 'later', 250]);
});

test('no answer in time is a timeout, and the next call has a new connection', async () => {
  const client = await clientOf(({ id, method }, socket) => {
    if (connections.length === 2) says(socket, { id, result: { method } });
  });
  const error = await rejected(client.hello());
  assert.deepEqual([error.type, error.retry], ['timeout', 'now']);
  assert.deepEqual(await client.hello(), { method: 'hello' });
});

test('a touch is told, and has its own time', async () => {
  const touches = [];
  const client = await clientOf(
    ({ id }, socket) => {
      says(socket, { method: 'touch', params: { id, key: 'default', jkt: 'j1', store: 'yubikey' } });
      setTimeout(() => says(socket, { id, result: PROOF }), 1200); // beyond the client's own timeout
    },
    { options: { onTouch: (touch) => touches.push(touch) } },
  );
  assert.equal(String(await client.proof('GET', API)), 'aa.bb.cc');
  assert.deepEqual(touches, [{ key: 'default', jkt: 'j1', store: 'yubikey', consent: false }]);
});

test('what onTouch throws ends its call and no other', async () => {
  const client = await clientOf(
    ({ id, params }, socket) => {
      if (params.key === 'card') says(socket, { method: 'touch', params: { id, key: 'card', jkt: 'j1', store: 's', consent: true } });
      else setTimeout(() => says(socket, { id, result: PROOF }), 100);
    },
    {
      options: {
        onTouch: () => {
          throw new Error('no card here');
        },
      },
    },
  );
  const [card, other] = await Promise.allSettled([client.proof('GET', API, { key: 'card' }), client.proof('GET', API, { key: 'soft' })]);
  assert.equal(card.reason.message, 'no card here');
  assert.equal(other.value.key, 'default');
});

test('no more than 32 requests are under way, and those given up while they wait let others in', async () => {
  let underWay = 0;
  let most = 0;
  const client = await clientOf(({ id }, socket) => {
    underWay += 1;
    most = Math.max(most, underWay);
    setTimeout(() => {
      underWay -= 1;
      says(socket, { id, result: PROOF });
    }, 5);
  });
  const giving = new AbortController();
  const many = Array.from({ length: 120 }, (_, n) => client.proof('GET', API, n % 2 ? { signal: giving.signal } : {}));
  giving.abort(new Error('enough'));
  const outcomes = await Promise.allSettled(many);
  assert.deepEqual(outcomes.map(({ status }) => status === 'fulfilled'), Array.from({ length: 120 }, (_, n) => n % 2 === 0));
  assert.equal(most, 32);
});
