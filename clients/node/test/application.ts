// Never run: what tsc has to take.
import type { DpopSession, OAuthClientProvider } from '@modelcontextprotocol/client';
import { Key, type RuntimeImplementation } from '@atproto/oauth-client';
import * as oauth from 'oauth4webapi';
import * as openid from 'openid-client';
import { AgentClient, atprotoKeys, createFetch, customFetch, DPoPAgentError, type Generation, mcpSession, proofOf, type Proof, requireBound, type Touch } from 'dpop-agent';

const agent = new AgentClient({ timeoutMs: 5000, onTouch: (touch: Touch) => console.error(touch.store) });
const { jkt }: Generation = await agent.generation('default');
const proof: Proof = await agent.proof('GET', new URL('https://api.example.com/'), { jkt, nonce: null });
console.log(String(proof), proof.state);

const origins = ['https://api.example.com'];
const send = createFetch(agent, { origins, key: 'default', getToken: async ({ refused }) => ({ accessToken: refused ? 'b' : 'a', jkt }) });
const response: Response = await send('https://api.example.com/me', { dpop: { jkt }, headers: [['Accept', '*/*']] });
console.log(proofOf(response)?.jkt);
const plain: typeof fetch = send;
console.log(plain);

export class Provider implements Pick<OAuthClientProvider, 'dpop'> {
  dpop(): DpopSession {
    return mcpSession(agent, { jkt });
  }
}

const { createKey, restoreKey } = atprotoKeys(Key, agent, { key: 'bluesky-alice' });
export const runtime: Pick<RuntimeImplementation, 'createKey'> = { createKey };
const key: Key = await restoreKey(jkt);
console.log(key.algorithms);

const as: oauth.AuthorizationServer = { issuer: 'https://as.example.com' };
const options = { [oauth.customFetch]: customFetch(agent, { origins, jkt }) };
const answer = await oauth.clientCredentialsGrantRequest(as, { client_id: 'a' }, oauth.None(), {}, options);
const tokens = requireBound(await oauth.processClientCredentialsResponse(as, { client_id: 'a' }, answer), { jkt });
console.log(tokens.expires_in);
await openid.discovery(new URL(as.issuer), 'a', 'b', openid.None(), { [openid.customFetch]: customFetch(agent, { origins, jkt }) });

try {
  await agent.hello();
} catch (error) {
  if (error instanceof DPoPAgentError && error.retry === 'later') console.error(error.type, error.hint, error.retryAfterMs);
}
