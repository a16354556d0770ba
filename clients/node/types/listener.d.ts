/**
 * Refuse a listener that can be seen to be somebody else's.
 *
 * Only root can see that: others may read the descriptors of processes of their own alone, and not
 * even those of an agent, which is closed to them.
 * @param {string} path
 */
export declare function checkListener(path: string): void;
