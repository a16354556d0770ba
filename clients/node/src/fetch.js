import { requireAccessToken } from './answers.js';
import { drop } from './body.js';
import { configuration, isKeyUnusable } from './errors.js';
import { dpopAccessToken, Origins, signedHop } from './hop.js';
import { isEventStream } from './refusal.js';

/**
 * @import { Proof } from './answers.js'
 * @import { AgentClient } from './client.js'
 * @import { Done } from './hop.js'
 */

/**
 * @typedef {object} BoundToken
 * @property {string} accessToken as the server sent it
 * @property {string} [jkt] the generation that signed the token request: without it the agent refuses while several sign
 */

/**
 * Gets an access token to present: a renewed one where `refused` is one that the server, or the agent
 * for its key, takes no more.
 * @callback GetToken
 * @param {{ refused?: BoundToken }} about
 * @returns {BoundToken | Promise<BoundToken>}
 */

/**
 * @typedef {object} FetchOptions
 * @property {Iterable<string | URL>} origins the authorization servers and resource servers that get proofs
 * @property {string} [key] the key's name; `default` without
 * @property {string} [jkt] the generation that signs, redirects included; the active one without
 * @property {GetToken} [getToken] what requests to listed origins present that have no Authorization header
 * @property {typeof globalThis.fetch} [fetch] does the sending; the global one without
 */

/**
 * @typedef {object} PerRequest what one request says, as `dpop` in its init
 * @property {string} [accessToken] presented beside the proof, at the first origin alone
 * @property {string} [jkt] the generation that signs
 */

/** @typedef {Omit<RequestInit, 'body'> & { body?: BodyInit | Uint8Array | null, dpop?: PerRequest }} SignedInit */

/**
 * @callback SignedFetch
 * @param {RequestInfo | URL} input
 * @param {SignedInit} [init]
 * @returns {Promise<Response>}
 */

const MAX_REDIRECTS = 20; // as the fetch standard has it
const CONTROL = /[\x00-\x08\x0a-\x1f\x7f]/;
const REDIRECTS = new Set([301, 302, 303, 307, 308]);
const NORMALIZED = new Set(['DELETE', 'GET', 'HEAD', 'OPTIONS', 'POST', 'PUT']);
const OF_BODY = ['Content-Encoding', 'Content-Language', 'Content-Location', 'Content-Type', 'Content-Length'];
const OF_ORIGIN = ['Authorization', 'Proxy-Authorization', 'Cookie', 'Host'];

/** @type {WeakMap<Response, Proof>} */
const proofs = new WeakMap();

/**
 * The proof that this response was sent for, undefined where its server isn't listed.
 * @param {Response} response
 */
export function proofOf(response) {
  return proofs.get(response);
}

/**
 * A `fetch` that signs each hop to a listed origin and leaves others unsigned.
 *
 * A request is sent a second time only if the server wants a nonce or its clock is behind the agent's, and only
 * if its body isn't a stream: that gets `nonce_required`. An access token, by `dpop`, `getToken` or
 * `Authorization: DPoP …`, goes out beside a proof, to a listed origin, or not at all; nor does a redirect carry
 * the body of a signed request to an origin that isn't listed.
 * @param {AgentClient} agent
 * @param {FetchOptions} options
 * @returns {SignedFetch}
 */
export function createFetch(agent, { origins, key, jkt, getToken, fetch = globalThis.fetch }) {
  const settings = { agent, key, jkt, origins: new Origins(origins), fetch };
  const tokens = getToken && new Tokens(getToken);
  return async (input, init = {}) => {
    const request = await outgoing(input, init);
    if (init.dpop?.accessToken !== undefined) {
      return (await follow(settings, request, { accessToken: init.dpop.accessToken, jkt: init.dpop.jkt ?? jkt })).response;
    }
    const accessToken = dpopAccessToken(request.headers);
    const presents = tokens && !request.headers.has('Authorization') && settings.origins.has(request.url);
    if (!presents) return (await follow(settings, request, { accessToken, jkt: init.dpop?.jkt ?? jkt })).response;
    return withToken(settings, request, tokens);
  };
}

/**
 * @typedef {object} Settings
 * @property {AgentClient} agent
 * @property {string | undefined} key
 * @property {string | undefined} jkt
 * @property {Origins} origins
 * @property {typeof globalThis.fetch} fetch
 */

/**
 * @typedef {object} Outgoing a request, apart from who presents what
 * @property {URL} url
 * @property {string} method
 * @property {Headers} headers
 * @property {BodyInit | null} body
 * @property {boolean} replayable
 * @property {RequestRedirect} redirect
 * @property {RequestInit} init what else it says
 */

/**
 * @param {RequestInfo | URL} input
 * @param {SignedInit} init
 * @returns {Promise<Outgoing>}
 */
async function outgoing(input, init) {
  const { dpop: _, ...rest } = init;
  let given = /** @type {RequestInit} */ (rest);
  if (typeof input === 'object' && !(input instanceof URL)) {
    const { method, headers, redirect, signal, referrer, referrerPolicy, mode, credentials, cache, integrity, keepalive } = input;
    given = { method, headers, redirect, signal, referrer, referrerPolicy, mode, credentials, cache, integrity, keepalive, ...given };
    // Its body is a stream by now, whatever it was made of: bytes can be sent twice, with their length.
    if (given.body === undefined && input.body) given.body = await input.arrayBuffer();
    input = input.url;
  }
  const { method = 'GET', body = null, redirect = 'follow' } = given;
  const url = new URL(input);
  // Only where there is but one way to (RFC 3986): what could be meant otherwise the agent refuses.
  url.pathname = url.pathname.replace(/[[\]^|]/g, (found) => `%${found.charCodeAt(0).toString(16).toUpperCase()}`);
  const headers = headersOf(given.headers);
  headers.delete('DPoP');
  return { url, method: normalized(method), headers, body, replayable: isReplayable(body), redirect, init: given };
}

/** @param {string} method */
function normalized(method) {
  return NORMALIZED.has(method.toUpperCase()) ? method.toUpperCase() : method;
}

/**
 * Headers, of which no error shows a value.
 * @param {HeadersInit} [given]
 */
export function headersOf(given = {}) {
  /** @type {Iterable<string[]>} */
  const lines = given instanceof Headers ? [] : Symbol.iterator in given ? given : Object.entries(given);
  // Headers would drop some control characters, and show the value in its error for others.
  if (Array.from(lines).some(([, value]) => CONTROL.test(value))) {
    throw configuration('a header has a line end or another control character', 'give credentials as the server sent them, and nothing more');
  }
  return new Headers(given);
}

/** @param {BodyInit | null} body */
function isReplayable(body) {
  return (
    body === null ||
    typeof body === 'string' ||
    body instanceof ArrayBuffer ||
    ArrayBuffer.isView(body) ||
    body instanceof Blob ||
    body instanceof FormData ||
    body instanceof URLSearchParams
  );
}

/** Where access tokens come from. */
class Tokens {
  #getToken;
  /** @type {BoundToken | undefined} */
  #overdue;

  /** @param {GetToken} getToken */
  constructor(getToken) {
    this.#getToken = getToken;
  }

  async next() {
    const refused = this.#overdue;
    this.#overdue = undefined;
    return this.#getToken(refused ? { refused } : {});
  }

  /** @param {BoundToken} refused */
  async insteadOf(refused) {
    return this.#getToken({ refused });
  }

  /**
   * A request that can't be sent again was answered with that: the next one gets another.
   * @param {BoundToken} refused
   */
  refuse(refused) {
    this.#overdue = refused;
  }
}

/**
 * @param {Settings} settings
 * @param {Outgoing} request
 * @param {Tokens} tokens
 */
async function withToken(settings, request, tokens) {
  const token = await tokens.next();
  let sent;
  try {
    sent = await follow(settings, request, token);
  } catch (error) {
    if (!isKeyUnusable(error) || !request.replayable) throw error;
    return (await follow(settings, request, await tokens.insteadOf(token))).response;
  }
  const { response, done } = sent;
  if (!done?.refusedAccessToken) return response;
  if (!request.replayable || isEventStream(response.headers)) {
    tokens.refuse(token);
    return response;
  }
  const other = await tokens.insteadOf(token);
  if (other.accessToken === token.accessToken) return response;
  await drop(response);
  const second = await follow(settings, request, other);
  if (second.done?.refusedAccessToken && second.done.clock) {
    await drop(second.response);
    throw second.done.clock;
  }
  return second.response;
}

/**
 * Send a request, and follow where it is redirected to: the fetch standard's HTTP-redirect fetch.
 * @param {Settings} settings
 * @param {Outgoing} first
 * @param {{ accessToken?: string, jkt?: string }} presented
 * @returns {Promise<{ response: Response, done?: Done }>}
 */
async function follow(settings, first, { accessToken, jkt }) {
  let request = first;
  let signed = false;
  if (accessToken !== undefined) requireAccessToken(accessToken);
  for (let redirects = 0; ; redirects += 1) {
    const { response, done } = await hop(settings, request, { accessToken, jkt, signedBefore: signed });
    signed ||= done !== undefined;
    const location = response.headers.get('Location');
    if (!REDIRECTS.has(response.status) || location === null || request.redirect === 'manual') {
      if (redirects > 0) Object.defineProperty(response, 'redirected', { value: true });
      return { response, done };
    }
    await drop(response);
    if (request.redirect === 'error') throw failed('unexpected redirect');
    if (redirects === MAX_REDIRECTS) throw failed('redirect count exceeded');
    const next = redirected(request, response.status, location);
    if (next.url.origin !== request.url.origin) {
      accessToken = undefined; // it was named for that server alone
      for (const name of OF_ORIGIN) next.headers.delete(name);
    }
    request = next;
  }
}

/**
 * @param {Outgoing} request
 * @param {number} status
 * @param {string} location
 * @returns {Outgoing}
 */
function redirected(request, status, location) {
  let url;
  try {
    url = new URL(location, request.url);
  } catch {
    throw failed('the redirect leads to no URL');
  }
  if (!/^https?:$/.test(url.protocol)) throw failed('URL scheme must be a HTTP(S) scheme');
  url.hash ||= request.url.hash;
  const headers = new Headers(request.headers);
  const asGet = status === 303 ? !['GET', 'HEAD'].includes(request.method) : status < 303 && request.method === 'POST';
  if (!asGet) {
    if (request.body !== null && !request.replayable) throw failed("a redirect wants the body again, and a stream can't be sent twice");
    return { ...request, url, headers };
  }
  for (const name of OF_BODY) headers.delete(name);
  return { ...request, url, headers, method: 'GET', body: null, replayable: true };
}

/**
 * What fetch itself throws.
 * @param {string} why
 */
function failed(why) {
  return new TypeError('fetch failed', { cause: new Error(why) });
}

/**
 * @param {Settings} settings
 * @param {Outgoing} request
 * @param {{ accessToken?: string, jkt?: string, signedBefore: boolean }} about
 * @returns {Promise<{ response: Response, done?: Done }>}
 */
async function hop({ agent, key, origins, fetch }, { url, method, headers, body, replayable, init }, { accessToken, jkt, signedBefore }) {
  /** @param {Headers} outgoing */
  const send = (outgoing) => fetch(url.href, { ...init, method, body, headers: outgoing, redirect: 'manual' });
  if (!origins.has(url)) {
    refuseUnlisted(url, accessToken, signedBefore && body !== null);
    return { response: await send(headers) };
  }
  const done = await signedHop({
    agent,
    htm: method,
    url,
    accessToken,
    key,
    jkt,
    replayable,
    signal: init.signal ?? undefined,
    send: (proof) => {
      const outgoing = new Headers(headers);
      outgoing.set('DPoP', String(proof));
      if (accessToken !== undefined) outgoing.set('Authorization', `DPoP ${accessToken}`);
      return send(outgoing);
    },
  });
  proofs.set(done.response, done.proof);
  return { response: done.response, done };
}

/**
 * @param {URL} url
 * @param {string | undefined} accessToken
 * @param {boolean} redirectedBody
 */
function refuseUnlisted(url, accessToken, redirectedBody) {
  if (accessToken !== undefined) {
    throw configuration(`a DPoP access token would go to ${url.origin}, which isn't among the origins`, 'add it to origins: […] if it may have this access token');
  }
  if (redirectedBody) {
    throw configuration(`a redirect would carry a request's body on to ${url.origin}, which isn't among the origins`, 'add it to origins: […] if it may have what was in that body');
  }
}
