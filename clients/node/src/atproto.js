/** @import { AgentClient } from './client.js' */
import { generationIn } from './answers.js';
import { configuration, DPoPAgentError } from './errors.js';

/**
 * @typedef {Record<string, unknown>} Claims
 */

/**
 * @template K
 * @typedef {object} AtprotoKeys
 * @property {(algs: string[]) => Promise<K & { readonly jkt: string }>} createKey for `RuntimeImplementation`: the
 *   key's active generation
 * @property {(jkt: string) => Promise<K & { readonly jkt: string }>} restoreKey the generation of a session that was
 *   stored with its key's `jkt`
 */

/**
 * Keys for `@atproto/oauth-client`, whose private halves stay with the agent.
 *
 * That library writes proofs itself, with a `jti` of little randomness; here the agent writes them, of the same
 * request, so the key needs no `--allow-sign-proof`.
 * @template {abstract new (jwk: any) => any} C
 * @param {C} Key the class of that name, from `@atproto/oauth-client`
 * @param {AgentClient} agent
 * @param {{ key?: string }} [options] the key's name, `default` without: one for each account, and servers can't
 *   correlate them
 * @returns {AtprotoKeys<InstanceType<C>>}
 */
export function atprotoKeys(Key, agent, { key = 'default' } = {}) {
  class AgentKey extends /** @type {new (jwk: any) => any} */ (/** @type {unknown} */ (Key)) {
    /**
     * @param {string} jkt
     * @param {Claims} jwk
     */
    constructor(jkt, jwk) {
      super(jwk);
      this.jkt = jkt;
    }

    /**
     * @param {Claims} header
     * @param {Claims} payload
     */
    async createJwt(header, payload) {
      const { htm, htu, ath, nonce } = payload;
      if (header.typ !== 'dpop+jwt' || typeof htm !== 'string' || typeof htu !== 'string') {
        throw configuration('this key signs DPoP proofs and nothing else', "take a key of the client's own for its assertions");
      }
      const proof = await agent.proof(htm, htu, {
        key,
        jkt: this.jkt,
        ath: typeof ath === 'string' ? ath : undefined,
        // The library tells nobody else what servers said.
        ...(typeof nonce === 'string' ? { nonce, seen: [{ htu, nonce }] } : {}),
      });
      return String(proof);
    }

    async verifyJwt() {
      throw configuration('this key signs DPoP proofs and nothing else', 'verify with its public JWK');
    }
  }

  /**
   * @param {(found: { state: string, jkt: string }) => boolean} wanted
   * @param {string} what
   */
  async function found(wanted, what) {
    const generation = generationIn(key, await agent.keys({ key }), (each) => wanted(/** @type {any} */ (each)));
    if (!generation) throw new DPoPAgentError('key_unknown', `the key '${key}' has no ${what}`, { hint: 'see: dpop-agent key list' });
    return generation;
  }

  return {
    async createKey(algs) {
      const { jkt, alg, jwk } = await found(({ state }) => state === 'active', 'active generation');
      if (!algs.includes(alg)) {
        throw new DPoPAgentError('algorithm_unsupported', `the server takes proofs by ${algs.join(', ')}, and the key '${key}' makes ${alg}`, {
          hint: 'make another key, with --alg; see: dpop-agent key create --help',
        });
      }
      return /** @type {any} */ (new AgentKey(jkt, { ...jwk, alg }));
    },
    async restoreKey(jkt) {
      const { alg, jwk } = await found((each) => each.jkt === jkt, `generation with the jkt ${jkt}`);
      return /** @type {any} */ (new AgentKey(jkt, { ...jwk, alg }));
    },
  };
}
