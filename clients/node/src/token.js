import { jsonObject } from './answers.js';
import { DPoPAgentError, isObject } from './errors.js';

/**
 * Let a token response pass that bound its access token to a key (RFC 9449 section 5), else throw
 * `token_not_bound`: `token_type` isn't DPoP, or `cnf.jkt`, there or in an access token that is a JWT, is another.
 * @template {object} T
 * @param {T} response the response's JSON
 * @param {{ jkt: string }} expected the generation that signed the token request
 * @returns {T}
 */
export function requireBound(response, { jkt }) {
  const { access_token: accessToken, token_type: type } = /** @type {Record<string, unknown>} */ (response);
  if (typeof accessToken !== 'string' || accessToken === '') {
    throw unbound('the token response has no access_token', 'look at its error member');
  }
  if (typeof type !== 'string' || type.toLowerCase() !== 'dpop') {
    throw unbound(`the token response's token_type is ${JSON.stringify(type)?.slice(0, 40)}, not DPoP`, "ask the server's operator whether DPoP is on for this client");
  }
  for (const [where, claims] of Object.entries({ 'the token response': response, 'the access token': jwtClaims(accessToken) })) {
    const bound = isObject(claims) && isObject(claims.cnf) ? claims.cnf.jkt : undefined;
    if (bound !== undefined && bound !== jkt) {
      throw unbound(`cnf.jkt of ${where} is ${JSON.stringify(bound).slice(0, 60)}, not ${jkt}`, 'give the jkt of the generation that signed the token request');
    }
  }
  return response;
}

/** @param {string} accessToken */
function jwtClaims(accessToken) {
  const parts = accessToken.split('.');
  return parts.length === 3 ? jsonObject(Buffer.from(parts[1], 'base64url')) : null;
}

/**
 * @param {string} what
 * @param {string} hint
 */
function unbound(what, hint) {
  return new DPoPAgentError('token_not_bound', what, { hint });
}
