import type { AgentClient } from './client.js';
export type McpSession = {
    buildProof: (request: {
        htm: string;
        htu: string | URL;
        accessToken?: string;
    }) => Promise<string>;
    observeNonce: (response: Response, url: string | URL) => void;
};
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
export declare function mcpSession<T = McpSession>(agent: AgentClient, { key, jkt }?: {
    key?: string;
    jkt?: string;
}): T;
