/** @import { AgentClient } from './client.js' */

const FRESH_MS = 120_000; // servers take a nonce for three minutes or more
const WAIT_MS = 1000; // that a request waits for another one's headers, at most

/**
 * Which requests to one server may go: at the end of its nonce one of them tries, and the others wait for what
 * comes of it, so that many at once cost one challenge.
 */
class Gate {
  #confirmed = 0;
  #usesNonces = true; // for all that is known
  /** @type {Promise<void> | undefined} */
  #trial;

  /**
   * Wait for the turn of a request. `done` is to be called once the agent knows what the server said; `sure` says
   * that the agent ought to have a nonce.
   * @returns {Promise<{ sure: boolean, done: () => void }>}
   */
  async turn() {
    const fresh = Math.abs(Date.now() - this.#confirmed) < FRESH_MS;
    if (fresh || !this.#usesNonces) return { sure: this.#usesNonces, done: () => {} };
    if (!this.#trial) return { sure: false, done: this.#tried() };
    /** @type {NodeJS.Timeout | undefined} */
    let timer;
    await Promise.race([this.#trial, new Promise((resolve) => (timer = setTimeout(resolve, WAIT_MS)))]);
    clearTimeout(timer);
    return { sure: false, done: () => {} };
  }

  #tried() {
    let done = () => {};
    this.#trial = new Promise((resolve) => (done = resolve));
    return () => {
      this.#trial = undefined;
      done();
    };
  }

  /** The server took a proof; did it take a nonce, or offer one? @param {boolean} withNonce */
  taken(withNonce) {
    this.#usesNonces = withNonce;
    this.#confirmed = Date.now();
  }

  /** The agent has none any more: it was started anew. */
  forget() {
    this.#confirmed = 0;
  }
}

/** @type {WeakMap<AgentClient, Map<string, Gate>>} */
const gates = new WeakMap();

/**
 * @param {AgentClient} agent
 * @param {string} origin one that is listed, so there are few
 */
export function gateOf(agent, origin) {
  const ofAgent = gates.get(agent) ?? new Map();
  gates.set(agent, ofAgent);
  const gate = ofAgent.get(origin) ?? new Gate();
  ofAgent.set(origin, gate);
  return gate;
}
