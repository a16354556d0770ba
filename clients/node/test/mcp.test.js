// The MCP conformance suite's scenarios for DPoP, with the official SDK.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { calculateJwkThumbprint, EmbeddedJWK, jwtVerify } from 'jose';
import { connected, Provider } from './mcp_client.js';
import { agentWith, rejected, ROOT, serverNode, serverWith } from './started.js';

const CLIENT = fileURLToPath(new URL('mcp_client.js', import.meta.url));

describe('the official MCP SDK with our session', () => {
  let agent;
  before(async () => {
    agent = await agentWith('default');
  });
  after(() => agent.close());

  for (const scenario of ['auth/dpop', 'auth/dpop-nonce']) {
    test(`passes every check of ${scenario}, and without it the SDK does not`, async () => {
      assert.match(await conformance(scenario), /Passed: 14\/14, 0 failed, 0 warnings/);
      assert.doesNotMatch(await conformance(scenario, '--plain'), /Passed: .* 0 failed/);
    });
  }

  test('a session goes on after a lock, a restart of the agent, a rotation and a refused access token', async () => {
    const server = await mcpServer();
    const own = await agentWith('default');
    try {
      const provider = new Provider(own.client());
      const client = await connected(`${server.origin}/mcp`, provider);
      const { jkt } = provider;
      await client.listTools();

      await own.admin.call('lock', {});
      const error = await rejected(client.listTools());
      assert.match(error.message, /dpop-agent unlock/);
      await own.admin.call('unlock', { store: 'softhsm' });
      await client.listTools();

      await own.stop();
      assert.match((await rejected(client.listTools())).message, /no agent listens/);
      await own.start();
      await client.listTools();

      await own.admin.call('key.rotate', { key: 'default' });
      await client.listTools();
      server.refuse(provider.saved.access_token);
      await client.listTools(); // by a refresh
      await client.close();
      assert.deepEqual(new Set(server.proofs.map((proof) => proof.jkt)), new Set([jkt]));
      assert.equal(server.challenges(), 2, "the first contact's, and one after the agent's restart");
    } finally {
      await own.close();
      await server.close();
    }
  });

  test('a token response that bound nothing is refused, and not presented', async () => {
    const server = await mcpServer({ tokenType: 'Bearer' });
    try {
      const error = await rejected(connected(`${server.origin}/mcp`, new Provider(agent.client())));
      assert.equal(error.type, 'token_not_bound');
      assert.ok(!server.seen.some(({ headers }) => headers.authorization));
    } finally {
      await server.close();
    }
  });

  async function conformance(scenario, ...words) {
    const folder = mkdtempSync('/tmp/dpop-');
    const { node, packages } = serverNode();
    try {
      const suite = spawn(
        node,
        [
          `--import=${new URL(`file://${ROOT}tests/servers/bind_local.mjs`).href}`,
          `${packages}/node_modules/@modelcontextprotocol/conformance/dist/index.js`,
          'client',
          `--scenario=${scenario}`,
          `--command=${[process.execPath, CLIENT, ...words].map((word) => `'${word}'`).join(' ')}`,
          '--verbose',
          '--force',
        ],
        { cwd: folder, env: agent.env },
      );
      let shown = '';
      for (const stream of [suite.stdout, suite.stderr]) stream.on('data', (text) => (shown += text));
      await once(suite, 'close');
      return shown;
    } finally {
      rmSync(folder, { recursive: true });
    }
  }
});

/** An MCP server that is its own authorization server, and wants a nonce in every proof; jose judges them. */
async function mcpServer({ tokenType = 'DPoP' } = {}) {
  const refused = new Set();
  const proofs = [];
  let challenges = 0;
  let issued = 0;
  const server = await serverWith(async (request, answer) => {
    const { status = 200, headers = {}, body } = await respond(request);
    answer.writeHead(status, { 'Content-Type': 'application/json', ...headers });
    answer.end(body && JSON.stringify(body));
  });
  const { origin } = server;
  return Object.assign(server, {
    proofs,
    refuse: (accessToken) => refused.add(accessToken),
    challenges: () => challenges,
  });

  async function respond({ method, url, headers, body }) {
    const { pathname, searchParams } = new URL(url, origin);
    if (pathname.startsWith('/.well-known/oauth-protected-resource')) return { body: { resource: `${origin}/mcp`, authorization_servers: [origin] } };
    if (pathname === '/.well-known/oauth-authorization-server') return { body: metadata(origin) };
    if (pathname.startsWith('/.well-known/')) return { status: 404 };
    if (pathname === '/register') return { status: 201, body: { ...JSON.parse(body), client_id: 'client' } };
    if (pathname === '/authorize') {
      assert.equal(searchParams.get('dpop_jkt').length, 43);
      const back = new URLSearchParams({ code: 'code', state: searchParams.get('state'), iss: origin });
      return { status: 302, headers: { Location: `${searchParams.get('redirect_uri')}?${back}` } };
    }
    const proof = await judged(method, pathname, headers.dpop);
    if (pathname === '/token') {
      if (proof.nonce !== 'n-1') return challenged(400);
      issued += 1;
      return { body: { access_token: `at-${issued}`, token_type: tokenType, refresh_token: 'rt', expires_in: 3600 } };
    }
    const accessToken = headers.authorization?.replace(/^DPoP /, '');
    const metadataUrl = `resource_metadata="${origin}/.well-known/oauth-protected-resource/mcp"`;
    if (!accessToken) return { status: 401, headers: { 'WWW-Authenticate': `DPoP ${metadataUrl}` } };
    if (proof.nonce !== 'n-1') return challenged(401);
    if (refused.has(accessToken)) return { status: 401, headers: { 'WWW-Authenticate': `DPoP error="invalid_token", ${metadataUrl}` } };
    if (method !== 'POST') return { status: method === 'GET' ? 405 : 200 };
    return said(JSON.parse(body));
  }

  function challenged(status) {
    challenges += 1;
    return {
      status,
      headers: { 'DPoP-Nonce': 'n-1', ...(status === 401 ? { 'WWW-Authenticate': 'DPoP error="use_dpop_nonce"' } : {}) },
      body: { error: 'use_dpop_nonce' },
    };
  }

  async function judged(method, path, dpop) {
    if (!dpop) return {};
    const { payload, protectedHeader } = await jwtVerify(dpop, EmbeddedJWK, { typ: 'dpop+jwt', algorithms: ['ES256'], maxTokenAge: 5 });
    assert.deepEqual([payload.htm, payload.htu], [method, origin + path]);
    proofs.push({ jkt: await calculateJwkThumbprint(protectedHeader.jwk) });
    return payload;
  }
}

function said({ id, method, params }) {
  if (id === undefined) return { status: 202 };
  const result = {
    initialize: { protocolVersion: params?.protocolVersion, capabilities: { tools: {} }, serverInfo: { name: 'test', version: '0' } },
    'tools/list': { tools: [] },
  }[method];
  return result ? { body: { jsonrpc: '2.0', id, result } } : { body: { jsonrpc: '2.0', id, error: { code: -32601, message: 'no such method' } } };
}

function metadata(origin) {
  return {
    issuer: origin,
    authorization_endpoint: `${origin}/authorize`,
    token_endpoint: `${origin}/token`,
    registration_endpoint: `${origin}/register`,
    response_types_supported: ['code'],
    grant_types_supported: ['authorization_code', 'refresh_token'],
    code_challenge_methods_supported: ['S256'],
    token_endpoint_auth_methods_supported: ['none'],
    authorization_response_iss_parameter_supported: true,
    dpop_signing_alg_values_supported: ['ES256'],
  };
}
