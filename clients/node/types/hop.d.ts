import { DPoPAgentError } from './errors.js';
import type { Proof } from './answers.js';
import type { AgentClient } from './client.js';
/** The servers that get proofs. */
export declare class Origins {
    #private;
    /** @param {Iterable<string | URL>} origins */
    constructor(origins: Iterable<string | URL>);
    /** @param {URL} url */
    has(url: URL): boolean;
}
/**
 * The access token in `Authorization: DPoP …` (RFC 9449 section 7.1), if there is one.
 * @param {Headers} headers
 */
export declare function dpopAccessToken(headers: Headers): string | undefined;
export type Hop = {
    /**
     * gives the proofs
     */
    agent: AgentClient;
    /**
     * the HTTP method
     */
    htm: string;
    /**
     * where the request goes
     */
    url: URL;
    /**
     * what is to be presented
     */
    accessToken?: string;
    /**
     * the key's name
     */
    key?: string;
    /**
     * the generation that signs, where it is pinned
     */
    jkt?: string;
    /**
     * whether the request's body can be sent twice
     */
    replayable: boolean;
    signal?: AbortSignal;
    /**
     * sends the request with that proof, and the access token
     */
    send: (proof: Proof) => Promise<Response>;
};
export type Done = {
    response: Response;
    /**
     * that of the response
     */
    proof: Proof;
    /**
     * the server takes that access token no more (RFC 6750 section 3.1)
     */
    refusedAccessToken: boolean;
    /**
     * what to throw where another access token is refused too: its server's
     * clock isn't the agent's
     */
    clock: DPoPAgentError | null;
};
/**
 * @typedef {object} Hop
 * @property {AgentClient} agent gives the proofs
 * @property {string} htm the HTTP method
 * @property {URL} url where the request goes
 * @property {string} [accessToken] what is to be presented
 * @property {string} [key] the key's name
 * @property {string} [jkt] the generation that signs, where it is pinned
 * @property {boolean} replayable whether the request's body can be sent twice
 * @property {AbortSignal} [signal]
 * @property {(proof: Proof) => Promise<Response>} send sends the request with that proof, and the access token
 */
/**
 * @typedef {object} Done
 * @property {Response} response
 * @property {Proof} proof that of the response
 * @property {boolean} refusedAccessToken the server takes that access token no more (RFC 6750 section 3.1)
 * @property {DPoPAgentError | null} clock what to throw where another access token is refused too: its server's
 *   clock isn't the agent's
 */
/**
 * Send one request to a listed server; a second time at most, with the server's nonce or dated back.
 * @param {Hop} hop
 * @returns {Promise<Done>}
 */
export declare function signedHop(hop: Hop): Promise<Done>;
