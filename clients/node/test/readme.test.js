// README.md is what somebody copies: its code runs as it stands there, in its order, with names filled in.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { agentWith, claims, serverWith } from './started.js';

const HERE = fileURLToPath(new URL('../', import.meta.url));

/** The code of one of the repository's documents. */
function read(document) {
  const text = readFileSync(`${HERE}../../${document}`, 'utf8');
  return [...text.matchAll(/^```js\n(.*?)^```$/gms)].map(([, code]) => code).join('\n');
}

/** What it shows, run with this before it and that after it. */
async function shown(agent, ...code) {
  const child = spawn(process.execPath, ['--input-type=module', '--eval', code.join('\n')], { cwd: HERE, env: agent.env });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (part) => (text += part));
  const [status] = await once(child, 'close');
  assert.equal(status, 0, text);
  return text;
}

test("the project's README has a fetch that signs", async () => {
  const agent = await agentWith('default');
  const server = await serverWith((_, answer) => answer.end('{}'));
  const given = `const [AS, API] = [${JSON.stringify(server.origin)}, ${JSON.stringify(server.origin)}];`;
  try {
    await shown(agent, given, read('README.md'), 'await send(`${API}/me`);');
    assert.deepEqual(server.seen.map(({ url, headers }) => [url, claims(headers.dpop).htm]), [['/me', 'GET']]);
  } finally {
    await server.close();
    await agent.close();
  }
});

test("the README's code runs", async () => {
  const agent = await agentWith('default', 'bluesky-alice');
  const server = await serverWith(({ url, headers }, answer) => {
    answer.setHeader('Content-Type', 'application/json');
    const { origin } = server;
    if (url === '/.well-known/openid-configuration') return answer.end(JSON.stringify({ issuer: origin, token_endpoint: `${origin}/token` }));
    if (url === '/token') return answer.end(JSON.stringify({ access_token: `at-${server.seen.length}`, token_type: 'DPoP' }));
    assert.ok(headers.authorization.startsWith('DPoP at-') && claims(headers.dpop).ath);
    return answer.end('{}');
  });
  const given = `
    const [AS, API, ID, SECRET] = [${JSON.stringify(server.origin)}, ${JSON.stringify(server.origin)}, 'id', 'secret'];
    const renewed = (token) => token;
    const options = { clientMetadata: { client_id: 'https://a.example/c.json', redirect_uris: ['https://a.example/cb'], response_types: ['code'], grant_types: ['authorization_code'], scope: 'atproto', token_endpoint_auth_method: 'none', application_type: 'web', dpop_bound_access_tokens: true }, responseMode: 'query', handleResolver: 'https://a.example', stateStore: new Map(), sessionStore: new Map() };
    const runtime = { getRandomValues() {}, digest() {} };
    class YourOAuthClientProvider { saveTokens(tokens) { return tokens; } redirectToAuthorization(url) { return url; } }
  `;
  const used = `
    const provider = new Provider();
    await provider.dpop().buildProof({ htm: 'GET', htu: API });
    provider.saveTokens(tokens);
    console.log(provider.redirectToAuthorization(new URL(AS)).search, (await createKey(['ES256'])).jkt === (await restoreKey((await createKey(['ES256'])).jkt)).jkt, client instanceof OAuthClient);
  `;
  const code = read('clients/node/README.md');
  // Plain http is this test's own.
  const local = code.replace("customFetch(agent, { origins: [AS, API], jkt }),\n", (text) => `${text}  execute: [openid.allowInsecureRequests],\n`);
  try {
    assert.match(await shown(agent, given, local, used), /^\?dpop_jkt=\S{43} true true\n$/);
    assert.deepEqual(server.seen.map(({ url }) => url), ['/token', '/me', '/me', '/.well-known/openid-configuration', '/token', '/me']);
  } finally {
    await server.close();
    await agent.close();
  }
});
