import type { Generation, Json, ProofOptions, Seen, Touch } from './answers.js';
export type ClientOptions = {
    /**
     * the agent's socket; `$DPOP_AGENT_SOCK` or the user's runtime folder without
     */
    path?: string;
    /**
     * what one call may take, 10 s without. A proof that waits for a touch has 60 s
     * from when the agent says so.
     */
    timeoutMs?: number;
    /**
     * called when a proof waits for a person. What it throws ends
     * the call.
     */
    onTouch?: (touch: Touch) => unknown;
};
/**
 * @typedef {object} ClientOptions
 * @property {string} [path] the agent's socket; `$DPOP_AGENT_SOCK` or the user's runtime folder without
 * @property {number} [timeoutMs] what one call may take, 10 s without. A proof that waits for a touch has 60 s
 *   from when the agent says so.
 * @property {(touch: Touch) => unknown} [onTouch] called when a proof waits for a person. What it throws ends
 *   the call.
 */
/**
 * The agent. One connection for all calls, made when it is first needed and anew when the agent was
 * restarted; idle, it doesn't keep the process.
 *
 * Every call rejects with a DPoPAgentError, of type `agent_unavailable`, `unsafe_socket` (nothing
 * was sent), `timeout`, or what the agent refused.
 */
export declare class AgentClient {
    #private;
    /** @readonly */
    path: string;
    /** @readonly */
    timeoutMs: number;
    /** @param {ClientOptions} [options] */
    constructor({ path, timeoutMs, onTouch }?: ClientOptions);
    /** Close the connection; calls under way fail, later ones connect anew. */
    close(): void;
    /**
     * A proof for one request (RFC 9449 section 4.2); each attempt needs its own.
     * @param {string} htm the HTTP method
     * @param {string | URL} uri the target URI as it is requested; query and fragment stay here
     * @param {ProofOptions} [options]
     */
    proof(htm: string, uri: string | URL, options?: ProofOptions): Promise<import("./answers.js").Proof>;
    /**
     * Tell what servers answered.
     * @param {Seen[]} seen
     */
    observe(seen: Seen[]): Promise<void>;
    /**
     * The key's active generation; ask once for a grant, then give its `jkt` everywhere.
     * @param {string} [key]
     * @returns {Promise<Generation>}
     */
    generation(key?: string): Promise<Generation>;
    /**
     * Keys and their generations, as PROTOCOL.md's `key.list` has them.
     * @param {{ key?: string, includeDestroyed?: boolean }} [options]
     */
    keys({ key, includeDestroyed }?: {
        key?: string;
        includeDestroyed?: boolean;
    }): Promise<Json[]>;
    /** The agent, its stores and the servers that it knows, as PROTOCOL.md has them. */
    status(): Promise<Json>;
    /** The agent's version, methods and limits. */
    hello(): Promise<Json>;
    /**
     * Any method of PROTOCOL.md; the result as it came.
     * @param {string} method
     * @param {Json} [params]
     */
    call(method: string, params?: Json): Promise<Json>;
}
