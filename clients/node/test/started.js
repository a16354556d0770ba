// What tests start: agents with a key in SoftHSM2, servers. Each ends with the test file.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { AgentClient } from '../src/index.js';

export const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
export const PYTHON = process.env.DPOP_TEST_PYTHON ?? `${ROOT}.venv/bin/python`;
const START_MS = 20_000;

/** An agent with a PKCS#11 token, a state folder and sockets of its own. */
export class Agent {
  #process;
  #clients = [];
  #user;

  /** Of an ordinary user where `uid` is given. */
  constructor({ uid } = {}) {
    // Not in a test's own folder: a socket's path has at most 107 bytes.
    this.folder = mkdtempSync('/tmp/dpop-');
    execFileSync(PYTHON, [`${ROOT}softhsm/new_token.py`, `${this.folder}/token`, 'test'], { stdio: 'ignore' });
    if (uid !== undefined) {
      execFileSync('chown', ['-R', `${uid}:${uid}`, this.folder]);
      this.#user = { uid, gid: uid };
    }
    this.socket = `${this.folder}/run/agent.sock`;
    this.adminSocket = `${this.folder}/run/admin.sock`;
    this.env = {
      ...process.env,
      DPOP_AGENT_CONFIG: `${this.folder}/token/config.toml`,
      DPOP_AGENT_STATE_DIR: `${this.folder}/state`,
      DPOP_AGENT_SOCK: this.socket,
    };
  }

  async start() {
    this.#process = spawn(PYTHON, ['-m', 'dpop_agent', 'serve'], { cwd: ROOT, env: this.env, stdio: ['ignore', 'ignore', 'pipe'], ...this.#user });
    let log = '';
    this.#process.stderr.on('data', (text) => (log += text));
    if (this.#user) {
      await new Promise((resolve, reject) => {
        this.#process.stderr.on('data', () => log.includes(' is open') && resolve());
        this.#process.on('exit', () => reject(new Error(`no agent: ${log}`)));
      });
      return this;
    }
    const deadline = performance.now() + START_MS;
    for (;;) {
      const client = new AgentClient({ path: this.socket });
      try {
        await client.hello();
        return this;
      } catch (error) {
        const ended = this.#process.exitCode !== null;
        if (ended || error.type !== 'agent_unavailable' || performance.now() > deadline) throw new Error(`no agent: ${log}`, { cause: error });
      } finally {
        client.close();
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  client(options = {}) {
    return this.#kept(new AgentClient({ path: this.socket, ...options }));
  }

  get admin() {
    return this.#kept(new AgentClient({ path: this.adminSocket, timeoutMs: 30_000 }));
  }

  #kept(client) {
    this.#clients.push(client);
    return client;
  }

  /** A new key's jkt. */
  async createKey(name = 'default', settings = {}) {
    const { keys } = await this.admin.call('key.create', { key: name, origins: [], ...settings });
    return keys[0].generations[0].jkt;
  }

  async stop() {
    const process = this.#process;
    if (!process || process.exitCode !== null) return;
    const ended = once(process, 'exit');
    process.kill();
    await ended;
  }

  async close() {
    for (const client of this.#clients) client.close();
    await this.stop();
    rmSync(this.folder, { recursive: true });
  }
}

/** A running agent with these keys. */
export async function agentWith(...keys) {
  const agent = await new Agent().start();
  for (const key of keys) await agent.createKey(key);
  return agent;
}

/** A process that prints one line of JSON first, and ends when its standard input does. */
export async function started(command, args, options = {}) {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'], ...options });
  let log = '';
  child.stderr.on('data', (text) => (log += text));
  const [line] = await Promise.race([once(createInterface(child.stdout), 'line'), once(child, 'exit').then(() => [''])]);
  if (!line) throw new Error(`it ended: ${log}`);
  return {
    ...JSON.parse(line),
    log: () => log,
    async close() {
      const ended = once(child, 'exit');
      child.stdin.end();
      await ended;
    },
  };
}

/** What the servers of tests/servers run on: Node, and the folder of their packages. */
export function serverNode() {
  const print = 'from tests.servers import node; print(node.node(), node.packages(), sep="\\n")';
  const [node, packages] = execFileSync(PYTHON, ['-c', print], { cwd: ROOT, encoding: 'utf8' }).split('\n');
  return { node, packages };
}

/** oidc-provider, which wants a nonce in every proof. */
export async function authorizationServer() {
  const { node, packages } = serverNode();
  const server = await started(node, [`${ROOT}tests/servers/authorization_server.mjs`, packages]);
  return Object.assign(server, { origin: `http://127.0.0.1:${server.port}` });
}

/** A server on 127.0.0.1 that answers by `answer(request, response)`, and what it has seen. */
export async function serverWith(answer) {
  const seen = [];
  const server = createServer(async (request, response) => {
    const parts = [];
    for await (const part of request) parts.push(part);
    const { method, url, headers, socket } = request;
    const it = { method, url, headers, body: Buffer.concat(parts).toString(), port: socket.remotePort };
    seen.push(it);
    await answer(it, response, seen.length);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    origin: `http://127.0.0.1:${server.address().port}`,
    seen,
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
}

/** The claims of a proof, unchecked. */
export function claims(proof) {
  return JSON.parse(Buffer.from(String(proof).split('.')[1], 'base64url'));
}

/** What is rejected with. */
export async function rejected(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error('nothing was refused');
}
