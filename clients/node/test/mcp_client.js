// The official SDK's client with its provider's sessions by the agent: `node mcp_client.js URL`.
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { AgentClient, mcpSession, requireBound } from '../src/index.js';

/** A provider of the SDK's that keeps all in memory; its user agrees at once. */
export class Provider {
  redirectUrl = 'http://127.0.0.1/callback';
  #agent;
  #state = crypto.randomUUID();

  constructor(agent, key = 'default') {
    this.#agent = agent;
    this.key = key;
  }

  get clientMetadata() {
    return {
      client_name: 'a test of dpop-agent',
      redirect_uris: [this.redirectUrl],
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      token_endpoint_auth_method: 'none',
      application_type: 'native',
      dpop_bound_access_tokens: true,
    };
  }

  async dpop() {
    this.jkt ??= (await this.#agent.generation(this.key)).jkt;
    return (this.session ??= mcpSession(this.#agent, { key: this.key, jkt: this.jkt }));
  }

  state() {
    return this.#state;
  }

  clientInformation() {
    return this.client;
  }

  saveClientInformation(client) {
    this.client = client;
  }

  tokens() {
    return this.saved;
  }

  saveTokens(tokens) {
    this.saved = requireBound(tokens, { jkt: this.jkt });
  }

  codeVerifier() {
    return this.verifier;
  }

  saveCodeVerifier(verifier) {
    this.verifier = verifier;
  }

  invalidateCredentials(scope) {
    if (scope === 'all' || scope === 'tokens') this.saved = undefined;
    if (scope === 'all' || scope === 'client') this.client = undefined;
  }

  async redirectToAuthorization(url) {
    await this.dpop();
    url.searchParams.set('dpop_jkt', this.jkt);
    const answer = await fetch(url, { redirect: 'manual' });
    this.back = new URL(answer.headers.get('Location'));
  }
}

/** A connected client. */
export async function connected(url, provider) {
  const client = new Client({ name: 'a test of dpop-agent', version: '0' });
  const first = new StreamableHTTPClientTransport(new URL(url), { authProvider: provider });
  try {
    await client.connect(first);
  } catch (error) {
    if (!provider.back) throw error;
    await first.finishAuth(provider.back.searchParams);
    await client.connect(new StreamableHTTPClientTransport(new URL(url), { authProvider: provider }));
  }
  return client;
}

/** As the SDK has it without a session: for a control. */
class Plain extends Provider {
  dpop = undefined;

  saveTokens(tokens) {
    this.saved = tokens;
  }

  async redirectToAuthorization(url) {
    const answer = await fetch(url, { redirect: 'manual' });
    this.back = new URL(answer.headers.get('Location'));
  }
}

if (process.argv[1].endsWith('/mcp_client.js')) {
  const provider = process.argv[2] === '--plain' ? new Plain() : new Provider(new AgentClient());
  const client = await connected(process.argv.at(-1), provider);
  for (const { name } of (await client.listTools()).tools) await client.callTool({ name, arguments: {} });
  await client.listTools();
  await client.close();
}
