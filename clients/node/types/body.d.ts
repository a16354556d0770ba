export type Reader = ReadableStreamDefaultReader<Uint8Array>;
/**
 * A body of at most MAX_CHALLENGE_BODY bytes, or null; and the response, which is as readable as it was.
 *
 * Not by `clone`: on older versions of Node what was cloned can't be cancelled, and is kept in memory.
 * @param {Response} response
 * @returns {Promise<{ body: Uint8Array | null, response: Response }>}
 */
export declare function peek(response: Response): Promise<{
    body: Uint8Array | null;
    response: Response;
}>;
/**
 * Be done with a response, and keep its connection where that is cheap.
 * @param {Response} response
 */
export declare function drop(response: Response): Promise<void>;
