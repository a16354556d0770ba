import { DPoPAgentError } from './errors.js';
import type { Socket } from 'node:net';
import type { Json, Touch } from './answers.js';
/** One request, and how long its answer is waited for. */
export declare class Call {
    #private;
    id: number;
    line: string;
    over: boolean;
    /** Rejected once nobody waits any longer. @type {Promise<never>} */
    givenUp: Promise<never>;
    /**
     * @param {number} id
     * @param {string} line
     * @param {number} timeoutMs
     * @param {((touch: Touch) => unknown) | undefined} onTouch
     * @param {AbortSignal | undefined} signal
     */
    constructor(id: number, line: string, timeoutMs: number, onTouch: ((touch: Touch) => unknown) | undefined, signal: AbortSignal | undefined);
    /**
     * A touch has a deadline of its own.
     * @param {Touch} touch
     */
    waitsFor(touch: Touch): void;
    end(): void;
}
/** Why there is no answer: the agent closed the connection, and nothing of one came. */
export declare const CLOSED: unique symbol;
export type Outcome = Json | DPoPAgentError | typeof CLOSED;
/** @typedef {Json | DPoPAgentError | typeof CLOSED} Outcome */
export declare class Connection {
    #private;
    closed: boolean;
    /** @param {Socket} socket */
    constructor(socket: Socket);
    get usable(): boolean;
    /**
     * @param {Call} call
     * @returns {Promise<Outcome>}
     */
    ask(call: Call): Promise<Outcome>;
    close(): void;
}
/**
 * A connection to the agent at that path; nothing is sent before the place is known to be ours.
 * @param {string} path
 * @param {() => boolean} wanted whether anybody still waits for it
 */
export declare function connect(path: string, wanted: () => boolean): Promise<Connection>;
