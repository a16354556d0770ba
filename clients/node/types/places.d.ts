/** `$DPOP_AGENT_SOCK`, else `dpop-agent/agent.sock` in the user's runtime folder. */
export declare function agentSocket(): string;
/**
 * Refuse a socket that somebody else could have put there, or could put another in place of.
 *
 * The folder is ours, with no permission for others, or root's and writable for nobody else (a
 * sandbox's); only we and root can change the way to it; and the socket is one that our uid bound.
 * @param {string} path
 */
export declare function checkSocket(path: string): void;
/** @param {unknown} error */
export declare function codeOf(error: unknown): string;
/**
 * Whether that uid is ours; the overflow uid of a user namespace never is, since it is anybody's.
 * @param {number} uid
 */
export declare function isOwn(uid: number): boolean;
