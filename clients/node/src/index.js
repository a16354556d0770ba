export { AgentClient } from './client.js';
export { DPoPAgentError, isKeyUnusable } from './errors.js';
export { createFetch, proofOf } from './fetch.js';
export { customFetch } from './oauth.js';
export { mcpSession } from './mcp.js';
export { atprotoKeys } from './atproto.js';
export { requireBound } from './token.js';

/**
 * @typedef {import('./answers.js').Generation} Generation
 * @typedef {import('./answers.js').Proof} Proof
 * @typedef {import('./answers.js').ProofOptions} ProofOptions
 * @typedef {import('./answers.js').Seen} Seen
 * @typedef {import('./answers.js').Touch} Touch
 * @typedef {import('./client.js').ClientOptions} ClientOptions
 * @typedef {import('./fetch.js').BoundToken} BoundToken
 * @typedef {import('./fetch.js').FetchOptions} FetchOptions
 * @typedef {import('./fetch.js').GetToken} GetToken
 * @typedef {import('./fetch.js').SignedFetch} SignedFetch
 * @typedef {import('./mcp.js').McpSession} McpSession
 */
