/**
 * Let a token response pass that bound its access token to a key (RFC 9449 section 5), else throw
 * `token_not_bound`: `token_type` isn't DPoP, or `cnf.jkt`, there or in an access token that is a JWT, is another.
 * @template {object} T
 * @param {T} response the response's JSON
 * @param {{ jkt: string }} expected the generation that signed the token request
 * @returns {T}
 */
export declare function requireBound<T extends object>(response: T, { jkt }: {
    jkt: string;
}): T;
