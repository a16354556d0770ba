/** @import { AgentClient } from './client.js' */
import { nonceIn } from './refusal.js';

/**
 * What the MCP TypeScript SDK does with a DpopSession.
 * @typedef {object} McpSession
 * @property {(request: { htm: string, htu: string | URL, accessToken?: string }) => Promise<string>} buildProof
 * @property {(response: Response, url: string | URL) => void} observeNonce
 */

/**
 * A DPoP session for `dpop()` of the MCP TypeScript SDK's OAuthClientProvider, signed by the agent.
 *
 * The SDK's own class has private members, so no other object has its type; of a session it uses these two
 * members alone. Where the SDK's type is expected, this is taken for it.
 * @template [T=McpSession]
 * @param {AgentClient} agent
 * @param {{ key?: string, jkt?: string }} [signer] the key's name, `default` without; the generation that a grant
 *   was made with
 * @returns {T}
 */
export function mcpSession(agent, { key, jkt } = {}) {
  /** @type {Map<string, string | null>} what the agent has, as far as this session knows */
  const nonces = new Map();
  let told = Promise.resolve();
  /** @type {McpSession} */
  const session = {
    async buildProof({ htm, htu, accessToken }) {
      await told;
      const proof = await agent.proof(htm, htu, { key, jkt, accessToken });
      nonces.set(new URL(htu).origin, proof.nonce);
      return String(proof);
    },
    observeNonce({ headers }, url) {
      const nonce = nonceIn(headers);
      const { origin } = new URL(url);
      if (nonce === null || nonce === nonces.get(origin)) return;
      nonces.set(origin, nonce);
      // The next proof waits for it; where it fails, that one says why.
      told = told.then(() => agent.observe([{ htu: String(url), nonce }])).catch(() => {});
    },
  };
  return /** @type {T} */ (session);
}
