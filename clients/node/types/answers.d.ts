import { DPoPAgentError } from './errors.js';
export type Seen = {
    /**
     * the URI that was requested; query and fragment stay here
     */
    htu: string;
    /**
     * its `DPoP-Nonce`
     */
    nonce?: string;
    /**
     * its `Date`, as RFC 3339
     */
    date?: string;
    /**
     * a nonce that it refused without giving another
     */
    refused_nonce?: string;
    /**
     * it refused a proof, perhaps for its `iat`
     */
    iat_refused?: boolean;
};
export type ProofOptions = {
    /**
     * the key's name; `default` without
     */
    key?: string;
    /**
     * the generation that the access token is bound to; the active one without
     */
    jkt?: string;
    /**
     * the one that is presented, if one is; it stays here
     */
    accessToken?: string;
    /**
     * its hash, where the access token isn't at hand (RFC 9449 section 4.2)
     */
    ath?: string;
    /**
     * the server's; left out, the agent uses the one that it knows; null for none
     */
    nonce?: string | null;
    /**
     * server answers to tell the agent first
     */
    seen?: Seen[];
    /**
     * gives up waiting
     */
    signal?: AbortSignal;
};
export type Touch = {
    /**
     * the key's name
     */
    key: string;
    /**
     * thumbprint of the generation that is to sign
     */
    jkt: string;
    /**
     * the name of the store that the card is
     */
    store: string;
    /**
     * whether somebody is asked to agree, and no card waits
     */
    consent: boolean;
};
export type Generation = {
    /**
     * the key's name
     */
    key: string;
    /**
     * its number, from 1
     */
    generation: number;
    /**
     * its thumbprint (RFC 7638): `dpop_jkt` in an authorization request
     */
    jkt: string;
    /**
     * `active`, `draining`, …
     */
    state: string;
    /**
     * the algorithm, such as `ES256`
     */
    alg: string;
    /**
     * the public key
     */
    jwk: Record<string, string>;
    /**
     * the store's name
     */
    store: string;
    /**
     * whether the private key can leave the store
     */
    exportable: boolean;
    /**
     * `hardware`, `software-token` or `keychain`
     */
    protection: string;
};
export type Json = Record<string, any>;
/**
 * @typedef {object} Seen what a server said
 * @property {string} htu the URI that was requested; query and fragment stay here
 * @property {string} [nonce] its `DPoP-Nonce`
 * @property {string} [date] its `Date`, as RFC 3339
 * @property {string} [refused_nonce] a nonce that it refused without giving another
 * @property {boolean} [iat_refused] it refused a proof, perhaps for its `iat`
 */
/**
 * @typedef {object} ProofOptions
 * @property {string} [key] the key's name; `default` without
 * @property {string} [jkt] the generation that the access token is bound to; the active one without
 * @property {string} [accessToken] the one that is presented, if one is; it stays here
 * @property {string} [ath] its hash, where the access token isn't at hand (RFC 9449 section 4.2)
 * @property {string | null} [nonce] the server's; left out, the agent uses the one that it knows; null for none
 * @property {Seen[]} [seen] server answers to tell the agent first
 * @property {AbortSignal} [signal] gives up waiting
 */
/**
 * @typedef {object} Touch a proof waits for a person: to touch the card, or to agree
 * @property {string} key the key's name
 * @property {string} jkt thumbprint of the generation that is to sign
 * @property {string} store the name of the store that the card is
 * @property {boolean} consent whether somebody is asked to agree, and no card waits
 */
/**
 * @typedef {object} Generation one generation of a key
 * @property {string} key the key's name
 * @property {number} generation its number, from 1
 * @property {string} jkt its thumbprint (RFC 7638): `dpop_jkt` in an authorization request
 * @property {string} state `active`, `draining`, …
 * @property {string} alg the algorithm, such as `ES256`
 * @property {Record<string, string>} jwk the public key
 * @property {string} store the store's name
 * @property {boolean} exportable whether the private key can leave the store
 * @property {string} protection `hardware`, `software-token` or `keychain`
 */
/** @typedef {Record<string, any>} Json */
export declare const MAX_LINE: number;
export declare const TOUCH_TIMEOUT_MS = 60000;
export declare const GRACE_MS = 500;
/** The first request on each connection; its answer needn't be waited for. */
export declare const SUBSCRIBE: string;
/** A DPoP proof; `String(proof)` is the value of the `DPoP` header, which nothing else shows. */
export declare class Proof {
    #private;
    /** @readonly the key's name */
    key: string;
    /** @readonly thumbprint of the generation that signed */
    jkt: string;
    /** @readonly that generation's state, `active` or `draining` */
    state: string;
    /** @readonly the server's nonce in the proof */
    nonce: string | null;
    /** @readonly seconds that a draining generation still signs if it isn't used meanwhile */
    drainLeftS: number | null;
    /**
     * @param {string} value
     * @param {{ key: string, jkt: string, state: string, nonce: string | null, drainLeftS: number | null }} about
     */
    constructor(value: string, { key, jkt, state, nonce, drainLeftS }: {
        key: string;
        jkt: string;
        state: string;
        nonce: string | null;
        drainLeftS: number | null;
    });
    toString(): string;
    /** Its `iat`; null where that can't be read. */
    get iat(): number | null;
}
/**
 * @param {number} id
 * @param {string} method
 * @param {Json} params
 */
export declare function encodeRequest(id: number, method: string, params: Json): string;
/**
 * Whether asking twice has the effect of asking once.
 * @param {string} method
 * @param {Json} params
 */
export declare function mayRepeat(method: string, params: Json): boolean;
/**
 * Parameters of `proof`; neither the access token nor the URI's query is among them.
 * @param {string} htm
 * @param {string | URL} uri
 * @param {ProofOptions} options
 * @param {number} timeoutMs
 */
export declare function proofParams(htm: string, uri: string | URL, { key, jkt, accessToken, ath, nonce, seen }: ProofOptions, timeoutMs: number): {
    htm: string;
    htu: string;
    key?: string | undefined;
    jkt?: string | undefined;
    ath?: string | undefined;
    nonce?: string | null | undefined;
    seen?: {
        nonce?: string;
        date?: string;
        refused_nonce?: string;
        iat_refused?: boolean;
        htu: string;
    }[] | undefined;
    timeout_ms: number;
};
/**
 * Refuse what no Authorization header can carry, before an error of others' shows it.
 * @param {unknown} text
 */
export declare function requireAccessToken(text: unknown): void;
/** @param {Seen[]} seen */
export declare function seenParams(seen: Seen[]): {
    nonce?: string;
    date?: string;
    refused_nonce?: string;
    iat_refused?: boolean;
    htu: string;
}[];
/**
 * The proof in the answer to a request for one by `jkt`.
 * @param {Json} result
 * @param {string} [asked]
 */
export declare function proofOf(result: Json, asked?: string): Proof;
/** @param {number} timeoutMs */
export declare function timedOut(timeoutMs: number): DPoPAgentError;
export type Line = {
    id: number | null;
    result?: Json;
    error?: DPoPAgentError;
    touch?: Touch;
};
/**
 * @typedef {object} Line what a line of the agent's answers to a request, or tells of it
 * @property {number | null} id
 * @property {Json} [result]
 * @property {DPoPAgentError} [error]
 * @property {Touch} [touch]
 */
/**
 * What the agent says on one line; nothing where it needn't be known.
 * @param {Uint8Array} bytes
 * @returns {Line | null}
 */
export declare function readLine(bytes: Uint8Array): Line | null;
/**
 * The JSON object that these bytes are the UTF-8 text of; null if they aren't any.
 * @param {Uint8Array} bytes
 * @returns {Json | null}
 */
export declare function jsonObject(bytes: Uint8Array): Json | null;
/** `key.list` over its pages: ask with `params` while there are any, and `add` the answer. */
export declare class Listing {
    #private;
    /** @type {Json | null} */
    params: Json | null;
    /** @type {Json[]} */
    keys: Json[];
    /**
     * @param {string | undefined} key
     * @param {boolean} includeDestroyed
     */
    constructor(key: string | undefined, includeDestroyed: boolean);
    /** @param {Json} page */
    add({ keys, cursor }: Json): void;
}
/**
 * @param {string} name
 * @param {Json[]} keys
 * @param {(found: Json) => boolean} wanted
 * @returns {Generation | undefined}
 */
export declare function generationIn(name: string, keys: Json[], wanted: (found: Json) => boolean): Generation | undefined;
