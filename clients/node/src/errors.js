/** @typedef {'no' | 'now' | 'later'} Retry */

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
export class DPoPAgentError extends Error {
  /**
   * @param {string} type the stable name that programs compare
   * @param {string} what what happened and why, one line, no secret in it
   * @param {object} [more]
   * @param {string} [more.hint] what to do next
   * @param {Retry} [more.retry] whether the same request can succeed
   * @param {number} [more.retryAfterMs] when `later` is, where that is known
   * @param {Record<string, unknown>} [more.details] further members of the wire's `data`
   */
  constructor(type, what, { hint = '', retry = 'no', retryAfterMs, details = {} } = {}) {
    super(hint ? `${what}; ${hint}` : what);
    this.name = 'DPoPAgentError';
    /** @readonly */
    this.type = type;
    /** @readonly */
    this.hint = hint;
    /**
     * @readonly
     * @type {Retry}
     */
    this.retry = retry;
    /** @readonly */
    this.retryAfterMs = retryAfterMs;
    /** @readonly */
    this.details = details;
  }
}

const UNUSABLE = new Set(
  `key_unusable key_mismatch key_unknown key_pending key_staged key_suspended key_compromised
   key_retired key_destroyed key_missing key_refused no_active`.split(/\s+/),
);

/**
 * Whether the agent gives no proof by that key or generation now; it never takes another instead.
 * @param {unknown} error
 * @returns {error is DPoPAgentError}
 */
export function isKeyUnusable(error) {
  return error instanceof DPoPAgentError && UNUSABLE.has(error.type);
}

/**
 * @param {string} what
 * @param {string} hint
 */
export function configuration(what, hint) {
  return new DPoPAgentError('configuration', what, { hint });
}

/**
 * @param {string} what
 * @param {string} hint
 */
export function unsafe(what, hint) {
  return new DPoPAgentError('unsafe_socket', what, { hint });
}

/** @param {string} what */
export function unavailable(what) {
  return new DPoPAgentError('agent_unavailable', what, {
    hint: 'start it with: dpop-agent serve',
    retry: 'later',
  });
}

/** @param {string} what */
export function broken(what) {
  return new DPoPAgentError('internal', what, { hint: "see the agent's log" });
}

/**
 * The error for a response's `error` member (JSON-RPC 2.0 section 5.1).
 * @param {unknown} error
 */
export function fromWire(error) {
  if (!isObject(error)) return broken("the agent's error isn't an object");
  const { type, hint, retry, retry_after_ms: after, ...details } = isObject(error.data) ? error.data : {};
  return new DPoPAgentError(
    typeof type === 'string' ? type : 'failed',
    typeof error.message === 'string' ? error.message : 'the agent refused',
    {
      hint: typeof hint === 'string' ? hint : '',
      retry: retry === 'now' || retry === 'later' ? retry : 'no',
      retryAfterMs: typeof after === 'number' ? after : undefined,
      details,
    },
  );
}

/**
 * @param {unknown} value
 * @returns {value is Record<string, unknown>}
 */
export function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
