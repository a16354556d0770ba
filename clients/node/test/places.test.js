import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, chownSync, linkSync, lstatSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { afterEach, beforeEach, test } from 'node:test';
import { AgentClient } from '../src/index.js';
import { Agent, PYTHON, rejected } from './started.js';

const asRoot = { skip: process.getuid() !== 0 && 'only root can give a file away' };
const NOBODY = 65534;
const USER = 4711;
let folder;
let server;
let received;

/** Something that listens, and counts what it is sent. */
async function listenAt(path) {
  server = createServer((socket) => socket.on('data', (data) => (received += data.length)));
  server.listen(path);
  await once(server, 'listening');
}

beforeEach(() => {
  received = 0;
  folder = mkdtempSync('/tmp/dpop-');
  mkdirSync(`${folder}/run`, { mode: 0o700 });
});
afterEach(() => {
  server?.close();
  server = undefined;
  rmSync(folder, { recursive: true });
});

async function refusal(path = `${folder}/run/agent.sock`) {
  const error = await rejected(new AgentClient({ path, timeoutMs: 200 }).hello());
  assert.equal(received, 0, 'nothing is sent');
  return error;
}

async function unsafe(shown, path) {
  const error = await refusal(path);
  assert.equal(error.type, 'unsafe_socket');
  assert.match(error.message, shown);
  assert.ok(error.hint);
}

test('what is found safe is asked', async () => {
  await listenAt(`${folder}/run/agent.sock`);
  const error = await rejected(new AgentClient({ path: `${folder}/run/agent.sock`, timeoutMs: 50 }).hello());
  assert.equal(error.type, 'timeout');
  assert.ok(received > 0);
});

test("what a hint says to type works, whatever the folder's name", async () => {
  const odd = `${folder}/it's a folder`;
  mkdirSync(odd);
  chmodSync(odd, 0o755);
  await listenAt(`${odd}/agent.sock`);
  const error = await refusal(`${odd}/agent.sock`);
  assert.match(error.hint, /^chmod 700 /);
  execFileSync('sh', ['-c', error.hint]);
  assert.equal((await rejected(new AgentClient({ path: `${odd}/agent.sock`, timeoutMs: 50 }).hello())).type, 'timeout');
});

for (const mode of [0o710, 0o701, 0o777, 0o750]) {
  test(`a folder of mode ${mode.toString(8)} is refused`, async () => {
    await listenAt(`${folder}/run/agent.sock`);
    chmodSync(`${folder}/run`, mode);
    await unsafe(/others can reach it/);
  });
}

test('a folder below one that others can write to is refused', async () => {
  await listenAt(`${folder}/run/agent.sock`);
  chmodSync(folder, 0o777);
  await unsafe(/above the socket, has mode 0777: others can replace what is in it/);
  chmodSync(folder, 0o1777); // sticky, as /tmp is
  assert.equal((await rejected(new AgentClient({ path: `${folder}/run/agent.sock`, timeoutMs: 50 }).hello())).type, 'timeout');
});

test('a folder that is a symbolic link is refused, and one above it is followed', async () => {
  await listenAt(`${folder}/run/agent.sock`);
  symlinkSync('run', `${folder}/link`);
  await unsafe(/is a symbolic link/, `${folder}/link/agent.sock`);
  mkdirSync(`${folder}/above`);
  symlinkSync('..', `${folder}/above/up`);
  assert.equal((await rejected(new AgentClient({ path: `${folder}/above/up/run/agent.sock`, timeoutMs: 50 }).hello())).type, 'timeout');
});

test('links without end are refused', async () => {
  symlinkSync('b', `${folder}/a`);
  symlinkSync('a', `${folder}/b`);
  await unsafe(/too many symbolic links/, `${folder}/a/run/agent.sock`);
});

test('what is no socket, and no folder, is refused', async () => {
  writeFileSync(`${folder}/run/agent.sock`, '');
  await unsafe(/isn't a socket/);
  await unsafe(/isn't a folder/, `${folder}/run/agent.sock/agent.sock`);
});

test('no socket, no listener and no folder are told apart from unsafe ones', async () => {
  assert.equal((await refusal()).type, 'agent_unavailable');
  assert.equal((await refusal(`${folder}/none/agent.sock`)).type, 'agent_unavailable');
  await unsafe(/there is no folder .*none/, `${folder}/none/run/agent.sock`);
  // A listener that was killed leaves its socket.
  const child = spawn(PYTHON, ['-c', `import socket; socket.socket(socket.AF_UNIX).bind("${folder}/run/agent.sock")`]);
  await once(child, 'exit');
  const error = await refusal();
  assert.deepEqual([error.type, error.hint], ['agent_unavailable', 'start it with: dpop-agent serve']);
});

test('a path that no socket can have is refused', async () => {
  assert.equal((await refusal('agent.sock')).type, 'configuration');
  assert.equal((await refusal(`/tmp/${'x'.repeat(200)}/agent.sock`)).type, 'configuration');
});

test("somebody else's folder, and one above it, is refused", asRoot, async () => {
  await listenAt(`${folder}/run/agent.sock`);
  chownSync(`${folder}/run`, NOBODY, NOBODY);
  await unsafe(/run belongs to uid 65534, not to uid 0/);
  chownSync(`${folder}/run`, 0, 0);
  chownSync(folder, NOBODY, NOBODY);
  await unsafe(/above the socket, belongs to uid 65534/);
});

test("somebody else's socket in a folder of ours is refused", asRoot, async () => {
  await listenAt(`${folder}/run/agent.sock`);
  chownSync(`${folder}/run/agent.sock`, NOBODY, NOBODY);
  await unsafe(/the socket .* belongs to uid 65534/);
});

test("root sees that somebody else listens, though the socket's file is root's", asRoot, async () => {
  chownSync(`${folder}/run`, NOBODY, NOBODY);
  const script = `
    import socket, sys
    s = socket.socket(socket.AF_UNIX); s.bind("${folder}/run/agent.sock"); s.listen()
    print(flush=True); sys.stdin.read()
  `;
  chownSync(folder, NOBODY, NOBODY);
  const child = spawn('/usr/bin/python3', ['-c', script.replace(/^ {4}/gm, '')], { uid: NOBODY, gid: NOBODY });
  await once(child.stdout, 'data');
  for (const place of [folder, `${folder}/run`, `${folder}/run/agent.sock`]) chownSync(place, 0, 0);
  try {
    assert.equal(lstatSync(`${folder}/run/agent.sock`).uid, 0);
    await unsafe(/the program that listens at .* runs as uid 65534, not as uid 0/);
  } finally {
    child.stdin.end();
    await once(child, 'exit');
  }
});

test("an ordinary user's client finds the user's own agent, in a folder of root's too, and nobody else's", asRoot, async () => {
  const agent = await new Agent({ uid: USER }).start();
  const theirs = `${agent.folder}/theirs`;
  try {
    assert.equal(await hello(agent.socket, USER), '1');
    assert.equal(await hello(agent.socket, NOBODY), 'unsafe_socket');
    assert.equal(await hello(agent.socket, 0), 'unsafe_socket');
    // What a sandbox has, into which the socket was mounted.
    mkdirSync(theirs, { mode: 0o755 });
    linkSync(`${agent.folder}/run/mount/agent.sock`, `${theirs}/agent.sock`);
    assert.equal(await hello(`${theirs}/agent.sock`, USER), '1');
    assert.equal(await hello(`${theirs}/agent.sock`, 0), 'unsafe_socket');
    chmodSync(theirs, 0o775);
    assert.equal(await hello(`${theirs}/agent.sock`, USER), 'unsafe_socket');
  } finally {
    await agent.close();
  }
});

/** The agent's protocol, or why it wasn't asked, as a client of that user has it. */
function hello(path, uid) {
  const script = `
    import { AgentClient } from ${JSON.stringify(new URL('../src/index.js', import.meta.url).href)};
    const client = new AgentClient({ path: ${JSON.stringify(path)} });
    console.log(await client.hello().then(({ protocol }) => protocol, ({ type }) => type));
  `;
  return printed(process.execPath, ['--input-type=module', '--eval', script], process.env, { uid, gid: uid });
}

test('the socket is where the Python client looks for it', async () => {
  const places = [
    { DPOP_AGENT_SOCK: '/x/y.sock', XDG_RUNTIME_DIR: folder },
    { DPOP_AGENT_SOCK: undefined, XDG_RUNTIME_DIR: `${folder}/run` },
    { DPOP_AGENT_SOCK: undefined, XDG_RUNTIME_DIR: undefined },
  ];
  for (const names of places) {
    const env = { ...process.env };
    for (const [name, value] of Object.entries(names)) value === undefined ? delete env[name] : (env[name] = value);
    const python = await printed(PYTHON, ['-c', 'from dpop_agent import paths; print(paths.agent_socket())'], env);
    const script = `import { agentSocket } from ${JSON.stringify(new URL('../src/places.js', import.meta.url).href)}; console.log(agentSocket());`;
    assert.equal(await printed(process.execPath, ['--input-type=module', '--eval', script], env), python);
  }
});

async function printed(command, args, env, user = {}) {
  const child = spawn(command, args, { env, stdio: ['ignore', 'pipe', 'inherit'], ...user });
  let text = '';
  child.stdout.on('data', (data) => (text += data));
  await once(child, 'close');
  return text.trim();
}
