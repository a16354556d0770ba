// A response's body: its beginning, and what nobody wants of it.
import { isEventStream, MAX_CHALLENGE_BODY } from './refusal.js';

/** @typedef {ReadableStreamDefaultReader<Uint8Array>} Reader */

const DRAIN_MS = 250; // that a connection is worth; nobody waits longer for the end of a body

/**
 * A body of at most MAX_CHALLENGE_BODY bytes, or null; and the response, which is as readable as it was.
 *
 * Not by `clone`: on older versions of Node what was cloned can't be cancelled, and is kept in memory.
 * @param {Response} response
 * @returns {Promise<{ body: Uint8Array | null, response: Response }>}
 */
export async function peek(response) {
  if (!response.body) return { body: new Uint8Array(), response };
  const reader = response.body.getReader();
  /** @type {Uint8Array[]} */
  const begun = [];
  const body = await whole(reader, begun).catch(() => null); // broken, as the caller will see
  const { status, statusText, headers, url } = response;
  const again = new Response(resumed(begun, reader), { status, statusText, headers });
  Object.defineProperty(again, 'url', { value: url });
  return { body, response: again };
}

/**
 * Be done with a response, and keep its connection where that is cheap.
 * @param {Response} response
 */
export async function drop(response) {
  if (!response.body || response.bodyUsed || response.body.locked) return;
  const reader = response.body.getReader();
  if (!isEventStream(response.headers)) {
    /** @type {NodeJS.Timeout | undefined} */
    let timer;
    const late = new Promise((resolve) => (timer = setTimeout(resolve, DRAIN_MS)));
    await Promise.race([whole(reader, []).catch(() => null), late]);
    clearTimeout(timer);
  }
  reader.cancel().catch(() => {});
}

/**
 * The bytes of a body, or null where there are too many; what was read is in `begun`.
 * @param {Reader} reader
 * @param {Uint8Array[]} begun
 */
async function whole(reader, begun) {
  let size = 0;
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    begun.push(next.value);
    size += next.value.length;
    if (size > MAX_CHALLENGE_BODY) return null;
  }
  return Buffer.concat(begun);
}

/**
 * A body whose beginning was read before.
 * @param {Uint8Array[]} begun
 * @param {Reader} reader
 */
function resumed(begun, reader) {
  return new ReadableStream({
    async pull(controller) {
      const part = begun.shift();
      if (part) return controller.enqueue(part);
      const { done, value } = await reader.read();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    cancel: (reason) => reader.cancel(reason),
  });
}
