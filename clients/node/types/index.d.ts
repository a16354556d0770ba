export { AgentClient } from './client.js';
export { DPoPAgentError, isKeyUnusable } from './errors.js';
export { createFetch, proofOf } from './fetch.js';
export { customFetch } from './oauth.js';
export { mcpSession } from './mcp.js';
export { atprotoKeys } from './atproto.js';
export { requireBound } from './token.js';
export type Generation = import('./answers.js').Generation;
export type Proof = import('./answers.js').Proof;
export type ProofOptions = import('./answers.js').ProofOptions;
export type Seen = import('./answers.js').Seen;
export type Touch = import('./answers.js').Touch;
export type ClientOptions = import('./client.js').ClientOptions;
export type BoundToken = import('./fetch.js').BoundToken;
export type FetchOptions = import('./fetch.js').FetchOptions;
export type GetToken = import('./fetch.js').GetToken;
export type SignedFetch = import('./fetch.js').SignedFetch;
export type McpSession = import('./mcp.js').McpSession;
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
