import { createFetch, headersOf } from './fetch.js';

/**
 * @import { AgentClient } from './client.js'
 * @import { FetchOptions, SignedFetch } from './fetch.js'
 */

const BEARER = /^bearer +(.*)$/i;

/**
 * `createFetch` for libraries that sign only with keys of their own, as `customFetch` of oauth4webapi and
 * openid-client: without one they present every access token as `Bearer`. Here it goes out as `DPoP`, beside a
 * proof, to a listed origin, or not at all.
 * @param {AgentClient} agent
 * @param {Omit<FetchOptions, 'getToken'>} options `jkt` keeps a grant with the generation that it was made with
 * @returns {SignedFetch}
 */
export function customFetch(agent, options) {
  const signed = createFetch(agent, options);
  return async (input, init = {}) => {
    const headers = headersOf(init.headers ?? (typeof input === 'object' && 'headers' in input ? input.headers : undefined));
    const accessToken = BEARER.exec(headers.get('Authorization') ?? '')?.[1];
    if (accessToken === undefined) return signed(input, init);
    headers.delete('Authorization');
    return signed(input, { ...init, headers, dpop: { ...init.dpop, accessToken } });
  };
}
