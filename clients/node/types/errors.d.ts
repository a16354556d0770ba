/** @typedef {'no' | 'now' | 'later'} Retry */
export type Retry = 'no' | 'now' | 'later';
/**
 * What can go wrong. `type` is for programs and stays the same over versions: PROTOCOL.md lists what
 * the agent refuses. Of this package itself are
 *
 *     agent_unavailable   nobody listens at the socket
 *     unsafe_socket       the socket, its folder or its listener isn't ours: nothing was sent
 *     configuration       an argument that can't be right, or an access token on its way elsewhere
 *     timeout             no answer in time
 *     internal            the agent's answer isn't one
 *     nonce_required      the server wants `details.nonce`, and the body can't be sent twice
 *     proof_refused       the server refused a proof, and the agent's clock may be to blame
 *     token_not_bound     the token response bound nothing, or another key
 */
export declare class DPoPAgentError extends Error {
    /** @readonly */
    type: string;
    /** @readonly */
    hint: string;
    /**
     * @readonly
     * @type {Retry}
     */
    retry: Retry;
    /** @readonly */
    retryAfterMs: number | undefined;
    /** @readonly */
    details: Record<string, unknown>;
    /**
     * @param {string} type the stable name that programs compare
     * @param {string} what what happened and why, one line, no secret in it
     * @param {object} [more]
     * @param {string} [more.hint] what to do next
     * @param {Retry} [more.retry] whether the same request can succeed
     * @param {number} [more.retryAfterMs] when `later` is, where that is known
     * @param {Record<string, unknown>} [more.details] further members of the wire's `data`
     */
    constructor(type: string, what: string, { hint, retry, retryAfterMs, details }?: {
        hint?: string;
        retry?: Retry;
        retryAfterMs?: number;
        details?: Record<string, unknown>;
    });
}
/**
 * Whether the agent gives no proof by that key or generation now; it never takes another instead.
 * @param {unknown} error
 * @returns {error is DPoPAgentError}
 */
export declare function isKeyUnusable(error: unknown): error is DPoPAgentError;
/**
 * @param {string} what
 * @param {string} hint
 */
export declare function configuration(what: string, hint: string): DPoPAgentError;
/**
 * @param {string} what
 * @param {string} hint
 */
export declare function unsafe(what: string, hint: string): DPoPAgentError;
/** @param {string} what */
export declare function unavailable(what: string): DPoPAgentError;
/** @param {string} what */
export declare function broken(what: string): DPoPAgentError;
/**
 * The error for a response's `error` member (JSON-RPC 2.0 section 5.1).
 * @param {unknown} error
 */
export declare function fromWire(error: unknown): DPoPAgentError;
/**
 * @param {unknown} value
 * @returns {value is Record<string, unknown>}
 */
export declare function isObject(value: unknown): value is Record<string, unknown>;
