import type { Proof } from './answers.js';
/** @import { Proof } from './answers.js' */
export declare const MAX_CHALLENGE_BODY: number;
/** What a 400 or 401 says. */
export declare class Refusal {
    #private;
    /** The codes, such as `invalid_token`; empty where it names none. */
    errors: Set<string>;
    /** That it was the proof that was refused, not what came with it. Keycloak has no error of its own for that. */
    ofProof: boolean;
    /** That it was, and perhaps for its `iat`. */
    maybeOfTime: boolean;
    /**
     * @param {string[]} errors
     * @param {string} description
     */
    constructor(errors: string[], description: string);
    /** @param {Headers} headers */
    static fromChallenges(headers: Headers): Refusal;
    /**
     * That, and what the response's JSON says; nothing where it isn't any.
     * @param {Uint8Array | null} body
     */
    andBody(body: Uint8Array | null): Refusal;
}
/**
 * Schemes and parameters of a WWW-Authenticate header (RFC 9110 section 11.6.1).
 *
 * What isn't a scheme or a parameter is skipped; so are the values of old schemes that have no parameters.
 * @param {string} header
 */
export declare function challenges(header: string): {
    scheme: string;
    params: Map<string, string>;
}[];
/**
 * The nonce for the next request (RFC 9449 section 8.2); a repeated or malformed header is none.
 * @param {Headers} headers
 */
export declare function nonceIn(headers: Headers): string | null;
/**
 * The server's time (RFC 9110 section 6.6.1), in seconds since 1970; null where it doesn't say.
 * @param {Headers} headers
 */
export declare function serverTime(headers: Headers): number | null;
/**
 * Seconds that a server's clock was ahead of the proof's `iat`; null where that isn't known.
 * @param {number | null} time
 * @param {Proof} proof
 */
export declare function clockOffset(time: number | null, proof: Proof): number | null;
/**
 * @param {number | null} offset
 * @returns {offset is number}
 */
export declare function isWrong(offset: number | null): offset is number;
/**
 * Whether a body may name an error. A token endpoint may send its JSON as text; an event stream may never end.
 * @param {Headers} headers
 */
export declare function maybeJson(headers: Headers): boolean;
/** @param {Headers} headers */
export declare function isEventStream(headers: Headers): boolean;
