import { generationIn, Listing, mayRepeat, encodeRequest, proofOf, proofParams, seenParams } from './answers.js';
import { Call, CLOSED, connect } from './connection.js';
import { configuration, DPoPAgentError, unavailable } from './errors.js';
import { agentSocket } from './places.js';

/**
 * @import { Generation, Json, ProofOptions, Seen, Touch } from './answers.js'
 * @import { Connection } from './connection.js'
 */

const DEFAULT_TIMEOUT_MS = 10_000;
const MAX_TIMEOUT_MS = 3_600_000;

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
export class AgentClient {
  #ids = 0;
  #onTouch;
  /** @type {Connection | undefined} */
  #connection;
  /** @type {Promise<Connection> | undefined} */
  #connecting;
  #callsUnderWay = 0;

  /** @param {ClientOptions} [options] */
  constructor({ path, timeoutMs = DEFAULT_TIMEOUT_MS, onTouch } = {}) {
    if (!(timeoutMs > 0 && timeoutMs <= MAX_TIMEOUT_MS)) {
      throw configuration(`timeoutMs is ${timeoutMs}: it has to be more than 0 and at most an hour`, 'give it in milliseconds');
    }
    /** @readonly */
    this.path = path ?? agentSocket();
    /** @readonly */
    this.timeoutMs = timeoutMs;
    this.#onTouch = onTouch;
  }

  /** Close the connection; calls under way fail, later ones connect anew. */
  close() {
    this.#connection?.close();
    this.#connection = undefined;
  }

  /**
   * A proof for one request (RFC 9449 section 4.2); each attempt needs its own.
   * @param {string} htm the HTTP method
   * @param {string | URL} uri the target URI as it is requested; query and fragment stay here
   * @param {ProofOptions} [options]
   */
  async proof(htm, uri, options = {}) {
    const params = proofParams(htm, uri, options, this.timeoutMs);
    return proofOf(await this.#ask('proof', params, options.signal), options.jkt);
  }

  /**
   * Tell what servers answered.
   * @param {Seen[]} seen
   */
  async observe(seen) {
    await this.#ask('observe', { seen: seenParams(seen) });
  }

  /**
   * The key's active generation; ask once for a grant, then give its `jkt` everywhere.
   * @param {string} [key]
   * @returns {Promise<Generation>}
   */
  async generation(key = 'default') {
    const keys = await this.keys({ key });
    const found = generationIn(key, keys, ({ state }) => state === 'active');
    if (found) return found;
    throw keys.some((each) => each.key === key)
      ? new DPoPAgentError('no_active', `the key '${key}' has no active generation`, { hint: 'see: dpop-agent key list' })
      : new DPoPAgentError('key_unknown', `there is no key '${key}'`, { hint: 'see: dpop-agent key list' });
  }

  /**
   * Keys and their generations, as PROTOCOL.md's `key.list` has them.
   * @param {{ key?: string, includeDestroyed?: boolean }} [options]
   */
  async keys({ key, includeDestroyed = false } = {}) {
    const listing = new Listing(key, includeDestroyed);
    while (listing.params) listing.add(await this.#ask('key.list', listing.params));
    return listing.keys;
  }

  /** The agent, its stores and the servers that it knows, as PROTOCOL.md has them. */
  status() {
    return this.#ask('status', {});
  }

  /** The agent's version, methods and limits. */
  hello() {
    return this.#ask('hello', {});
  }

  /**
   * Any method of PROTOCOL.md; the result as it came.
   * @param {string} method
   * @param {Json} [params]
   */
  call(method, params = {}) {
    return this.#ask(method, params);
  }

  /**
   * @param {string} method
   * @param {Json} params
   * @param {AbortSignal} [signal]
   */
  async #ask(method, params, signal) {
    const id = (this.#ids += 1);
    const call = new Call(id, encodeRequest(id, method, params), this.timeoutMs, this.#onTouch, signal);
    this.#callsUnderWay += 1;
    try {
      return await Promise.race([call.givenUp, this.#answer(call, mayRepeat(method, params))]);
    } finally {
      this.#callsUnderWay -= 1;
      call.end();
    }
  }

  /**
   * @param {Call} call
   * @param {boolean} repeatable
   * @returns {Promise<Json>}
   */
  async #answer(call, repeatable) {
    const kept = this.#connection?.usable === true;
    let outcome = await this.#askOnce(call);
    if (outcome === CLOSED && kept && repeatable && !call.over) outcome = await this.#askOnce(call);
    if (outcome === CLOSED) throw unavailable('the agent closed the connection without an answer');
    if (outcome instanceof DPoPAgentError) throw outcome;
    return outcome;
  }

  /** @param {Call} call */
  async #askOnce(call) {
    return (await this.#connected()).ask(call);
  }

  async #connected() {
    if (this.#connection?.usable) return this.#connection;
    this.#connecting ??= connect(this.path, () => this.#callsUnderWay > 0).finally(() => {
      this.#connecting = undefined;
    });
    return (this.#connection = await this.#connecting);
  }
}
