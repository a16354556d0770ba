// What happens on one HTTP hop: RFC 9449 sections 7 to 9 from the client's side. A redirect is a hop
// of its own, so it has its own proof, by the rules for where it leads.
import { requireAccessToken } from './answers.js';
import { drop, peek } from './body.js';
import { configuration, DPoPAgentError } from './errors.js';
import { gateOf } from './nonces.js';
import { clockOffset, isWrong, maybeJson, nonceIn, Refusal, serverTime } from './refusal.js';

/**
 * @import { Proof, ProofOptions, Seen } from './answers.js'
 * @import { AgentClient } from './client.js'
 */

// Wherever a lenient server might find the scheme.
const DPOP = /(?:^|,)[^!#$%&'*+\-.^_`|~0-9A-Za-z,]*dpop(?![!#$%&'*+\-.^_`|~0-9A-Za-z])/i;
const IN_FORM = /^dpop +(.*)$/i;

// What a server calls a nonce that it takes no more.
const NONCE_REFUSED = ['use_dpop_nonce', 'invalid_dpop_proof', 'invalid_token'];

/** The servers that get proofs. */
export class Origins {
  #listed;

  /** @param {Iterable<string | URL>} origins */
  constructor(origins) {
    if (typeof origins === 'string') throw configuration('origins is a text', 'give a list: origins: […]');
    this.#listed = new Set(Array.from(origins, originOf));
    if (this.#listed.size === 0) {
      throw configuration('origins is empty: nothing would be signed', 'list the authorization server and the resource servers');
    }
  }

  /** @param {URL} url */
  has(url) {
    return this.#listed.has(url.origin);
  }
}

/** @param {string | URL} text */
function originOf(text) {
  const url = parsed(text);
  const plain = url && /^https?:$/.test(url.protocol) && !/[*?#@]/.test(String(text));
  if (!plain || url.pathname !== '/') {
    throw new DPoPAgentError('htu_refused', 'an origin is a scheme, a host and perhaps a port, and nothing more', { hint: 'such as https://api.example.com' });
  }
  return url.origin;
}

/** @param {string | URL} text */
function parsed(text) {
  try {
    return new URL(text);
  } catch {
    return null;
  }
}

/**
 * The access token in `Authorization: DPoP …` (RFC 9449 section 7.1), if there is one.
 * @param {Headers} headers
 */
export function dpopAccessToken(headers) {
  const value = headers.get('Authorization');
  if (value === null || !DPOP.test(value)) return undefined;
  const accessToken = IN_FORM.exec(value)?.[1];
  if (accessToken === undefined) {
    throw configuration("the Authorization header isn't DPoP, a space and an access token", 'give it as RFC 9449 section 7.1 has it, and once');
  }
  requireAccessToken(accessToken);
  return accessToken;
}

/**
 * @typedef {object} Hop
 * @property {AgentClient} agent gives the proofs
 * @property {string} htm the HTTP method
 * @property {URL} url where the request goes
 * @property {string} [accessToken] what is to be presented
 * @property {string} [key] the key's name
 * @property {string} [jkt] the generation that signs, where it is pinned
 * @property {boolean} replayable whether the request's body can be sent twice
 * @property {AbortSignal} [signal]
 * @property {(proof: Proof) => Promise<Response>} send sends the request with that proof, and the access token
 */

/**
 * @typedef {object} Done
 * @property {Response} response
 * @property {Proof} proof that of the response
 * @property {boolean} refusedAccessToken the server takes that access token no more (RFC 6750 section 3.1)
 * @property {DPoPAgentError | null} clock what to throw where another access token is refused too: its server's
 *   clock isn't the agent's
 */

/**
 * Send one request to a listed server; a second time at most, with the server's nonce or dated back.
 * @param {Hop} hop
 * @returns {Promise<Done>}
 */
export async function signedHop(hop) {
  const { agent, accessToken } = hop;
  const uri = hop.url.href;
  const { response, proof, refusal } = await exchange(hop);
  const news = newsIn(uri, response, proof);
  if (news) await tell(agent, news);
  if (!refusal) return { response, proof, refusedAccessToken: false, clock: null };
  const clock = clockError(hop.url.origin, response, refusal, proof);
  const iatRefused = clock !== null && refusal.ofProof;
  const trouble = troubleIn(response, refusal, proof, iatRefused);
  if (trouble) await tell(agent, { htu: uri, ...trouble });
  if (clock && iatRefused) {
    await drop(response);
    throw clock;
  }
  const expired = response.status === 401 && refusal.errors.has('invalid_token');
  return { response, proof, refusedAccessToken: expired && accessToken !== undefined, clock };
}

/**
 * The last response, when it is this request's turn, and the proof that it was sent for.
 * @param {Hop} hop
 */
async function exchange(hop) {
  const { agent, htm, url, send } = hop;
  const wanted = { key: hop.key, jkt: hop.jkt, accessToken: hop.accessToken, signal: hop.signal };
  const gate = gateOf(agent, url.origin);
  let turn = await gate.turn();
  try {
    let proof = await agent.proof(htm, url, wanted);
    if (turn.sure && proof.nonce === null) {
      gate.forget();
      turn = await gate.turn();
      proof = await agent.proof(htm, url, wanted);
    }
    let { response, refusal } = await refusalIn(await send(proof));
    const again = refusal && (await onRefusal(() => secondProof(hop, wanted, response, refusal, proof), response));
    if (again) {
      turn.done(); // the agent has the nonce, and others needn't wait for this one's answer
      await drop(response);
      proof = again;
      ({ response, refusal } = await refusalIn(await send(proof)));
    }
    if (!refusal?.errors.has('use_dpop_nonce')) gate.taken(proof.nonce !== null || nonceIn(response.headers) !== null);
    return { response, proof, refusal };
  } finally {
    turn.done();
  }
}

/**
 * @template T
 * @param {() => Promise<T>} work
 * @param {Response} response left open by nobody where it fails
 */
async function onRefusal(work, response) {
  try {
    return await work();
  } catch (error) {
    await drop(response);
    throw error;
  }
}

/**
 * Another proof after a refusal, if it may fare better: it has a new jti.
 * @param {Hop} hop
 * @param {ProofOptions} wanted
 * @param {Response} response
 * @param {Refusal | null} refusal
 * @param {Proof} proof
 */
async function secondProof({ agent, htm, url, replayable }, wanted, response, refusal, proof) {
  const nonce = nonceIn(response.headers);
  const news = newsIn(url.href, response, proof);
  const seen = news ? [news] : [];
  if (nonce !== null && refusal?.errors.has('use_dpop_nonce')) {
    if (!replayable) {
      await tell(agent, { htu: url.href, nonce, ...news });
      throw new DPoPAgentError('nonce_required', `${url.origin} asks for a nonce in the proof, but the body can't be sent twice`, {
        hint: 'send the request again with a fresh body: the agent knows the nonce now',
        retry: 'now',
        details: { nonce },
      });
    }
    await drop(response); // before the agent is asked: meanwhile its connection is free again
    return agent.proof(htm, url, { ...wanted, nonce, seen });
  }
  const time = serverTime(response.headers);
  const offset = clockOffset(time, proof);
  if (!refusal?.maybeOfTime || !replayable || !isWrong(offset)) return null;
  // The agent dates proofs back for a server that is behind, and no longer for one that was; whether
  // it does now, its next proof shows.
  const later = await agent.proof(htm, url, { ...wanted, seen });
  const laterOffset = clockOffset(time, later);
  return laterOffset !== null && Math.abs(laterOffset) + 1 < Math.abs(offset) ? later : null;
}

/**
 * Tell the agent what a server said; the response is worth more than the nonce.
 * @param {AgentClient} agent
 * @param {Seen} seen
 */
async function tell(agent, seen) {
  await agent.observe([seen]).catch(() => {});
}

/**
 * What the agent doesn't know yet: another nonce, and the server's clock where it refused.
 * @param {string} uri
 * @param {Response} response
 * @param {Proof} proof
 * @returns {Seen | null}
 */
function newsIn(uri, response, proof) {
  const nonce = nonceIn(response.headers);
  const time = mayRefuse(response) ? serverTime(response.headers) : null;
  /** @type {Seen} */
  const seen = { htu: uri };
  if (nonce !== null && nonce !== proof.nonce) seen.nonce = nonce;
  if (time !== null) seen.date = new Date(time * 1000).toISOString().replace('.000Z', 'Z');
  return Object.keys(seen).length > 1 ? seen : null;
}

/**
 * What an agent takes since 0.2, told apart: an older one refuses whatever it comes with.
 * @param {Response} response
 * @param {Refusal} refusal
 * @param {Proof} proof
 * @param {boolean} iatRefused
 * @returns {{ refused_nonce?: string, iat_refused?: boolean } | null}
 */
function troubleIn(response, refusal, proof, iatRefused) {
  const named = refusal.errors.size || response.status !== 401 ? refusal.errors : new Set(['invalid_token']);
  const nonceRefused = nonceIn(response.headers) === null && NONCE_REFUSED.some((error) => named.has(error));
  const trouble = {
    ...(proof.nonce !== null && nonceRefused ? { refused_nonce: proof.nonce } : {}),
    ...(iatRefused ? { iat_refused: true } : {}),
  };
  return Object.keys(trouble).length ? trouble : null;
}

/**
 * Say that the clock may be to blame, where the server's time doesn't say otherwise.
 * @param {string} origin
 * @param {Response} response
 * @param {Refusal} refusal
 * @param {Proof} proof
 */
function clockError(origin, response, refusal, proof) {
  const time = serverTime(response.headers);
  if (time === null) {
    // The nonce may be to blame as well.
    return refusal.maybeOfTime && proof.nonce === null ? unknownClock(origin) : null;
  }
  const offset = clockOffset(time, proof);
  const suspect = refusal.maybeOfTime || refusal.errors.has('invalid_token');
  return suspect && isWrong(offset) ? wrongClock(origin, offset) : null;
}

/** @param {string} origin */
function unknownClock(origin) {
  return new DPoPAgentError('proof_refused', `${origin} refused a proof; the agent's clock may be wrong, and the answer has no Date to compare it with`, {
    hint: "compare the clock of the agent's machine with the right time",
    details: { clock_offset_s: null },
  });
}

/**
 * @param {string} origin
 * @param {number} offset
 */
function wrongClock(origin, offset) {
  const behind = offset > 0;
  const until = behind ? 'proofs are never dated ahead of it' : 'proofs are dated back by 300 s at most, from the next request on';
  return new DPoPAgentError('proof_refused', `${origin} refused a proof; by its Date the agent's clock is ${Math.abs(offset)} s ${behind ? 'behind' : 'ahead'}`, {
    hint: `set the clock of the agent's machine; ${until}`,
    details: { clock_offset_s: offset },
  });
}

/** @param {Response} response */
function mayRefuse({ status }) {
  return status === 400 || status === 401; // both occur at authorization servers and at resource servers
}

/**
 * What the server says where it refused, in its challenges or in its body; and the response, still to be read.
 * @param {Response} response
 * @returns {Promise<{ response: Response, refusal: Refusal | null }>}
 */
async function refusalIn(response) {
  if (!mayRefuse(response)) return { response, refusal: null };
  const { headers } = response;
  const said = Refusal.fromChallenges(headers);
  const plain = said.errors.has('use_dpop_nonce') || (said.errors.size && nonceIn(headers) === null);
  if (plain || !maybeJson(headers)) return { response, refusal: said };
  const { body, response: again } = await peek(response);
  return { response: again, refusal: said.andBody(body) };
}
