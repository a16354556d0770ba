import { Origins } from './hop.js';
import type { Proof } from './answers.js';
import type { AgentClient } from './client.js';
export type BoundToken = {
    /**
     * as the server sent it
     */
    accessToken: string;
    /**
     * the generation that signed the token request: without it the agent refuses while several sign
     */
    jkt?: string;
};
export type GetToken = (about: {
    refused?: BoundToken;
}) => BoundToken | Promise<BoundToken>;
export type FetchOptions = {
    /**
     * the authorization servers and resource servers that get proofs
     */
    origins: Iterable<string | URL>;
    /**
     * the key's name; `default` without
     */
    key?: string;
    /**
     * the generation that signs, redirects included; the active one without
     */
    jkt?: string;
    /**
     * what requests to listed origins present that have no Authorization header
     */
    getToken?: GetToken;
    /**
     * does the sending; the global one without
     */
    fetch?: typeof globalThis.fetch;
};
export type PerRequest = {
    /**
     * presented beside the proof, at the first origin alone
     */
    accessToken?: string;
    /**
     * the generation that signs
     */
    jkt?: string;
};
export type SignedInit = Omit<RequestInit, 'body'> & {
    body?: BodyInit | Uint8Array | null;
    dpop?: PerRequest;
};
export type SignedFetch = (input: RequestInfo | URL, init?: SignedInit) => Promise<Response>;
/**
 * The proof that this response was sent for, undefined where its server isn't listed.
 * @param {Response} response
 */
export declare function proofOf(response: Response): Proof | undefined;
/**
 * A `fetch` that signs each hop to a listed origin and leaves others unsigned.
 *
 * A request is sent a second time only if the server wants a nonce or its clock is behind the agent's, and only
 * if its body isn't a stream: that gets `nonce_required`. An access token, by `dpop`, `getToken` or
 * `Authorization: DPoP …`, goes out beside a proof, to a listed origin, or not at all; nor does a redirect carry
 * the body of a signed request to an origin that isn't listed.
 * @param {AgentClient} agent
 * @param {FetchOptions} options
 * @returns {SignedFetch}
 */
export declare function createFetch(agent: AgentClient, { origins, key, jkt, getToken, fetch }: FetchOptions): SignedFetch;
export type Settings = {
    agent: AgentClient;
    key: string | undefined;
    jkt: string | undefined;
    origins: Origins;
    fetch: typeof globalThis.fetch;
};
export type Outgoing = {
    url: URL;
    method: string;
    headers: Headers;
    body: BodyInit | null;
    replayable: boolean;
    redirect: RequestRedirect;
    /**
     * what else it says
     */
    init: RequestInit;
};
/**
 * Headers, of which no error shows a value.
 * @param {HeadersInit} [given]
 */
export declare function headersOf(given?: HeadersInit): Headers;
