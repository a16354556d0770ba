import type { AgentClient } from './client.js';
export type Claims = Record<string, unknown>;
export type AtprotoKeys<K> = {
    /**
     * for `RuntimeImplementation`: the
     * key's active generation
     */
    createKey: (algs: string[]) => Promise<K & {
        readonly jkt: string;
    }>;
    /**
     * the generation of a session that was
     * stored with its key's `jkt`
     */
    restoreKey: (jkt: string) => Promise<K & {
        readonly jkt: string;
    }>;
};
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
export declare function atprotoKeys<C extends abstract new (jwk: any) => any>(Key: C, agent: AgentClient, { key }?: {
    key?: string;
}): AtprotoKeys<InstanceType<C>>;
