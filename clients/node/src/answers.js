// What a client asks and what the answers mean, without I/O.
import { createHash } from 'node:crypto';
import { broken, configuration, DPoPAgentError, fromWire, isObject } from './errors.js';

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

export const MAX_LINE = 60 * 1024; // bytes in either direction, the newline included
export const TOUCH_TIMEOUT_MS = 60_000;
export const GRACE_MS = 500; // beyond the timeout, so that the agent's own typed answer wins
const MAX_TIMEOUT_MS = 60_000; // that can be asked for
const MAX_PAGES = 1000; // of one listing, against an agent whose cursor never ends
const SUBSCRIPTION = 0;
const REPEATABLE = new Set(['hello', 'proof', 'proof.sign', 'observe', 'key.list', 'status', 'reload', 'socket.list']);

const B64TOKEN = /^[A-Za-z0-9\-._~+/]+=*$/; // RFC 6750 section 2.1
const COMPACT = /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/; // RFC 7515 section 7.1
const UTF8 = new TextDecoder('utf-8', { fatal: true });

/** The first request on each connection; its answer needn't be waited for. */
export const SUBSCRIBE = encodeRequest(SUBSCRIPTION, 'subscribe', { events: ['touch'] });

/** A DPoP proof; `String(proof)` is the value of the `DPoP` header, which nothing else shows. */
export class Proof {
  #value;

  /**
   * @param {string} value
   * @param {{ key: string, jkt: string, state: string, nonce: string | null, drainLeftS: number | null }} about
   */
  constructor(value, { key, jkt, state, nonce, drainLeftS }) {
    this.#value = value;
    /** @readonly the key's name */
    this.key = key;
    /** @readonly thumbprint of the generation that signed */
    this.jkt = jkt;
    /** @readonly that generation's state, `active` or `draining` */
    this.state = state;
    /** @readonly the server's nonce in the proof */
    this.nonce = nonce;
    /** @readonly seconds that a draining generation still signs if it isn't used meanwhile */
    this.drainLeftS = drainLeftS;
    Object.freeze(this);
  }

  toString() {
    return this.#value;
  }

  /** Its `iat`; null where that can't be read. */
  get iat() {
    const claims = jsonObject(Buffer.from(this.#value.split('.')[1] ?? '', 'base64url'));
    return Number.isInteger(claims?.iat) ? Number(claims?.iat) : null;
  }
}

Object.defineProperty(Proof.prototype, Symbol.for('nodejs.util.inspect.custom'), {
  /** @this {Proof} */
  value() {
    return `<Proof key=${this.key} jkt=${this.jkt} state=${this.state}>`;
  },
});

/**
 * @param {number} id
 * @param {string} method
 * @param {Json} params
 */
export function encodeRequest(id, method, params) {
  const line = `${JSON.stringify({ jsonrpc: '2.0', id, method, params })}\n`;
  if (Buffer.byteLength(line) > MAX_LINE) {
    throw configuration(`the request has more than ${MAX_LINE} bytes`, 'send less at once');
  }
  return line;
}

/**
 * Whether asking twice has the effect of asking once.
 * @param {string} method
 * @param {Json} params
 */
export function mayRepeat(method, params) {
  return REPEATABLE.has(method) || 'request_id' in params;
}

/**
 * Parameters of `proof`; neither the access token nor the URI's query is among them.
 * @param {string} htm
 * @param {string | URL} uri
 * @param {ProofOptions} options
 * @param {number} timeoutMs
 */
export function proofParams(htm, uri, { key, jkt, accessToken, ath, nonce, seen }, timeoutMs) {
  if (accessToken !== undefined) {
    if (ath !== undefined) throw configuration('both accessToken and ath were given', 'give the one that you have');
    requireAccessToken(accessToken);
    ath = createHash('sha256').update(accessToken).digest('base64url');
  }
  return {
    htm,
    htu: bareUri(uri),
    ...(key === undefined ? {} : { key }),
    ...(jkt === undefined ? {} : { jkt }),
    ...(ath === undefined ? {} : { ath }),
    ...(nonce === undefined ? {} : { nonce }),
    ...(seen?.length ? { seen: seenParams(seen) } : {}),
    timeout_ms: Math.max(1, Math.min(Math.floor(timeoutMs), MAX_TIMEOUT_MS)),
  };
}

/**
 * Refuse what no Authorization header can carry, before an error of others' shows it.
 * @param {unknown} text
 */
export function requireAccessToken(text) {
  if (typeof text !== 'string' || !B64TOKEN.test(text)) {
    throw configuration('the access token has a character that none has, such as white space or a line end', 'give it as the server sent it, and nothing more (RFC 6750 section 2.1)');
  }
}

/** @param {Seen[]} seen */
export function seenParams(seen) {
  return seen.map((item) => ({ ...item, htu: bareUri(item.htu) }));
}

/**
 * Without query and fragment: they can hold secrets, and `htu` has neither.
 * @param {string | URL} uri
 */
function bareUri(uri) {
  return String(uri).split('#', 1)[0].split('?', 1)[0];
}

/**
 * The proof in the answer to a request for one by `jkt`.
 * @param {Json} result
 * @param {string} [asked]
 */
export function proofOf(result, asked) {
  const { proof, key, jkt, state, nonce = null, drain_left_s: left } = result;
  const texts = [proof, key, jkt, state].every((value) => typeof value === 'string');
  if (!texts || (nonce !== null && typeof nonce !== 'string')) throw broken("the agent's answer has no proof in it");
  if (asked !== undefined && jkt !== asked) throw broken(`the agent answered with a proof by ${jkt}, not by ${asked}`);
  if (!COMPACT.test(proof)) throw broken("the agent's answer has a proof that isn't a signed JWT");
  return new Proof(proof, { key, jkt, state, nonce, drainLeftS: Number.isInteger(left) ? left : null });
}

/** @param {number} timeoutMs */
export function timedOut(timeoutMs) {
  return new DPoPAgentError('timeout', `the agent didn't answer within ${timeoutMs / 1000} s`, {
    hint: 'try again, with a longer timeout',
    retry: 'now',
  });
}

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
export function readLine(bytes) {
  const message = jsonObject(bytes);
  if (!message) throw broken("the agent's answer isn't a JSON-RPC response");
  if ('method' in message) return readEvent(message);
  const { id = null, error, result } = message;
  if (id !== null && !Number.isInteger(id)) throw broken("the agent's answer has an id that no request of ours had");
  if (error !== undefined && error !== null) {
    const refusal = fromWire(error);
    if (id === null) throw refusal; // it takes no more of us
    return id === SUBSCRIPTION ? null : { id, error: refusal };
  }
  if (!isObject(result)) throw broken("the agent's result isn't an object");
  return id === SUBSCRIPTION ? null : { id, result };
}

/**
 * @param {Json} message
 * @returns {Line | null}
 */
function readEvent({ method, params }) {
  if (typeof method !== 'string' || !isObject(params)) throw broken("the agent's event isn't a JSON-RPC notification");
  if (method !== 'touch') return null;
  const { id, key, jkt, store, consent } = params;
  if (typeof key !== 'string' || typeof jkt !== 'string' || typeof store !== 'string') {
    throw broken("the agent's event has no touch in it");
  }
  return { id: Number.isInteger(id) ? Number(id) : null, touch: { key, jkt, store, consent: consent === true } };
}

/**
 * The JSON object that these bytes are the UTF-8 text of; null if they aren't any.
 * @param {Uint8Array} bytes
 * @returns {Json | null}
 */
export function jsonObject(bytes) {
  try {
    const value = JSON.parse(UTF8.decode(bytes));
    return isObject(value) ? value : null;
  } catch {
    return null;
  }
}

/** `key.list` over its pages: ask with `params` while there are any, and `add` the answer. */
export class Listing {
  /** @type {Json[]} */
  keys = [];
  #pages = 0;

  /**
   * @param {string | undefined} key
   * @param {boolean} includeDestroyed
   */
  constructor(key, includeDestroyed) {
    /** @type {Json | null} */
    this.params = {
      ...(key === undefined ? {} : { key }),
      ...(includeDestroyed ? { include_destroyed: true } : {}),
    };
  }

  /** @param {Json} page */
  add({ keys, cursor }) {
    if (!Array.isArray(keys) || !keys.every(isKey)) throw broken("the agent's answer has no list of keys in it");
    for (const key of keys) {
      const last = this.keys.at(-1);
      if (last?.key === key.key) last?.generations.push(...key.generations);
      else this.keys.push(key);
    }
    this.#pages += 1;
    if (this.#pages === MAX_PAGES) throw broken(`the agent's list of keys has more than ${MAX_PAGES} pages`);
    this.params = typeof cursor === 'string' ? { ...this.params, cursor } : null;
  }
}

/** @param {unknown} key */
function isKey(key) {
  return isObject(key) && typeof key.key === 'string' && Array.isArray(key.generations) && key.generations.every(isObject);
}

/**
 * @param {string} name
 * @param {Json[]} keys
 * @param {(found: Json) => boolean} wanted
 * @returns {Generation | undefined}
 */
export function generationIn(name, keys, wanted) {
  for (const { key, store, alg, generations } of keys) {
    if (key !== name) continue;
    const found = generations.find(wanted);
    if (!found) return undefined;
    const { generation, jkt, state, jwk, exportable, protection } = found;
    for (const [part, value] of Object.entries({ store, alg, generation, jkt, state, jwk, exportable, protection })) {
      if (value === undefined) throw broken(`the agent's list of keys has no ${part}`);
    }
    return { key, generation, jkt, state, alg, jwk, store, exportable, protection };
  }
  return undefined;
}
