// What a server's refusal says (RFC 6749 section 5.2, RFC 6750 section 3.1, RFC 9449), without I/O.
// The error is in the challenge (RFC 9110 section 11) or in the body alone, at either kind of server.
import { jsonObject } from './answers.js';

/** @import { Proof } from './answers.js' */

export const MAX_CHALLENGE_BODY = 16 * 1024; // bytes of a body that may name an error; real ones are short
const MAX_CHALLENGE_HEADER = 8 * 1024; // characters of a WWW-Authenticate header that are looked at
const CLOCK_AHEAD_S = 2; // from which on an agent counts as ahead of a server; a Date has whole seconds
const CLOCK_BEHIND_S = 10; // from which on it counts as behind: a proof is as old as its request was under way

// What Keycloak, Bluesky and others write where `iat` is the reason, and where it isn't.
const OF_TIME = /\biat\b|time|clock|active|expired|too old|future|stale|skew|\bage\b/i;
const OF_SOMETHING_ELSE =
  /jti|replay|already|htu|htm|ur[il]\b|method|alg|nonce|\bath\b|thumbprint|jkt|signature|missing|mismatch|jwk|\btyp\b/i;

// RFC 9110 section 11: challenges and their parameters share one comma-separated list.
const TOKEN = "[!#$%&'*+\\-.^_`|~0-9A-Za-z]+";
const GAP = /[ \t,]*/y;
const PARAM = new RegExp(`(${TOKEN})[ \\t]*=[ \\t]*(?:"((?:[^"\\\\]|\\\\.)*)"|(${TOKEN}))(?=[ \\t]*(?:,|$))`, 'sy');
const SCHEME = new RegExp(`(${TOKEN})(?=[ \\t,]|$)`, 'y');
const TO_COMMA = /[^,]*/y;

const IMF_FIXDATE = /^[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT$/; // RFC 9110 section 5.6.7
const NONCE = /^[\x21\x23-\x5b\x5d-\x7e]{1,512}$/; // RFC 9449 section 8.1

/** What a 400 or 401 says. */
export class Refusal {
  #description;

  /**
   * @param {string[]} errors
   * @param {string} description
   */
  constructor(errors, description) {
    /** The codes, such as `invalid_token`; empty where it names none. */
    this.errors = new Set(errors);
    this.#description = description;
    const ofTime = OF_TIME.test(description);
    /** That it was the proof that was refused, not what came with it. Keycloak has no error of its own for that. */
    this.ofProof =
      this.errors.has('invalid_dpop_proof') ||
      ((this.errors.has('invalid_request') || this.errors.has('invalid_token')) &&
        ofTime &&
        /dpop proof/i.test(description));
    /** That it was, and perhaps for its `iat`. */
    this.maybeOfTime = this.ofProof && (ofTime || !OF_SOMETHING_ELSE.test(description));
  }

  /** @param {Headers} headers */
  static fromChallenges(headers) {
    const params = challenges(headers.get('WWW-Authenticate') ?? '').map((each) => each.params);
    return new Refusal(
      params.flatMap((each) => each.get('error') ?? []),
      params.map((each) => each.get('error_description') ?? '').join(' '),
    );
  }

  /**
   * That, and what the response's JSON says; nothing where it isn't any.
   * @param {Uint8Array | null} body
   */
  andBody(body) {
    const { error, error_description: description } = (body && jsonObject(body)) ?? {};
    return new Refusal(
      typeof error === 'string' ? [...this.errors, error] : [...this.errors],
      typeof description === 'string' ? `${this.#description} ${description}` : this.#description,
    );
  }
}

/**
 * Schemes and parameters of a WWW-Authenticate header (RFC 9110 section 11.6.1).
 *
 * What isn't a scheme or a parameter is skipped; so are the values of old schemes that have no parameters.
 * @param {string} header
 */
export function challenges(header) {
  /** @type {{ scheme: string, params: Map<string, string> }[]} */
  const found = [];
  const text = header.slice(0, MAX_CHALLENGE_HEADER);
  let at = 0;
  /** @param {RegExp} pattern */
  const match = (pattern) => {
    pattern.lastIndex = at;
    const matched = pattern.exec(text);
    if (matched) at = pattern.lastIndex;
    return matched;
  };
  match(GAP);
  while (at < text.length) {
    const last = found.at(-1);
    const param = last && match(PARAM);
    if (last && param) {
      const [, name, quoted, plain] = param;
      const value = quoted === undefined ? plain : quoted.replace(/\\(.)/gs, '$1');
      if (!last.params.has(name.toLowerCase())) last.params.set(name.toLowerCase(), value);
    } else {
      const scheme = match(SCHEME);
      if (scheme) found.push({ scheme: scheme[1].toLowerCase(), params: new Map() });
      else match(TO_COMMA);
    }
    match(GAP);
  }
  return found;
}

/**
 * The nonce for the next request (RFC 9449 section 8.2); a repeated or malformed header is none.
 * @param {Headers} headers
 */
export function nonceIn(headers) {
  const nonce = headers.get('DPoP-Nonce');
  return nonce !== null && NONCE.test(nonce) ? nonce : null;
}

/**
 * The server's time (RFC 9110 section 6.6.1), in seconds since 1970; null where it doesn't say.
 * @param {Headers} headers
 */
export function serverTime(headers) {
  const date = headers.get('Date');
  if (date === null || !IMF_FIXDATE.test(date)) return null;
  const time = Date.parse(date) / 1000;
  return time > 0 ? time : null;
}

/**
 * Seconds that a server's clock was ahead of the proof's `iat`; null where that isn't known.
 * @param {number | null} time
 * @param {Proof} proof
 */
export function clockOffset(time, proof) {
  return time === null || proof.iat === null ? null : Math.round(time - proof.iat);
}

/**
 * @param {number | null} offset
 * @returns {offset is number}
 */
export function isWrong(offset) {
  return offset !== null && !(-CLOCK_AHEAD_S < offset && offset < CLOCK_BEHIND_S);
}

/**
 * Whether a body may name an error. A token endpoint may send its JSON as text; an event stream may never end.
 * @param {Headers} headers
 */
export function maybeJson(headers) {
  const type = mediaType(headers);
  return type === 'application/json' || type.endsWith('+json') || (nonceIn(headers) !== null && !isEventStream(headers));
}

/** @param {Headers} headers */
export function isEventStream(headers) {
  return mediaType(headers) === 'text/event-stream';
}

/** @param {Headers} headers */
function mediaType(headers) {
  return (headers.get('Content-Type') ?? '').split(';')[0].trim().toLowerCase();
}
