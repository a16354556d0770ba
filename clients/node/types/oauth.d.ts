import type { AgentClient } from './client.js';
import type { FetchOptions, SignedFetch } from './fetch.js';
/**
 * `createFetch` for libraries that sign only with keys of their own, as `customFetch` of oauth4webapi and
 * openid-client: without one they present every access token as `Bearer`. Here it goes out as `DPoP`, beside a
 * proof, to a listed origin, or not at all.
 * @param {AgentClient} agent
 * @param {Omit<FetchOptions, 'getToken'>} options `jkt` keeps a grant with the generation that it was made with
 * @returns {SignedFetch}
 */
export declare function customFetch(agent: AgentClient, options: Omit<FetchOptions, 'getToken'>): SignedFetch;
