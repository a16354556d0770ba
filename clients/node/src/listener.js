// Who listens at a socket, as far as /proc tells (Linux). Node has no SO_PEERCRED.
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { unsafe } from './errors.js';
import { isOwn } from './places.js';

const LISTENS = 0x10000; // __SO_ACCEPTCON

/**
 * Refuse a listener that can be seen to be somebody else's.
 *
 * Only root can see that: others may read the descriptors of processes of their own alone, and not
 * even those of an agent, which is closed to them.
 * @param {string} path
 */
export function checkListener(path) {
  if (process.platform !== 'linux' || process.geteuid?.() !== 0) return;
  const uids = holders(listening(path));
  if (uids.length > 0 && !uids.some(isOwn)) {
    throw unsafe(`the program that listens at ${path} runs as uid ${uids[0]}, not as uid ${process.getuid?.()}`, 'use your own agent, started by yourself: dpop-agent serve');
  }
}

/**
 * The sockets that were bound there and listen, as /proc has them: `socket:[123]`.
 * @param {string} path
 */
function listening(path) {
  const sockets = new Set();
  for (const line of readLines('/proc/net/unix')) {
    const [, , , flags = '', , , inode, ...name] = line.trim().split(/ +/);
    if (parseInt(flags, 16) & LISTENS && name.join(' ') === path) sockets.add(`socket:[${inode}]`);
  }
  return sockets;
}

/**
 * The effective uids of the processes that have one of these sockets.
 * @param {Set<string>} sockets
 */
function holders(sockets) {
  /** @type {number[]} */
  const uids = [];
  if (sockets.size === 0) return uids;
  for (const pid of names('/proc').filter((name) => /^\d+$/.test(name))) {
    if (names(`/proc/${pid}/fd`).some((fd) => sockets.has(link(`/proc/${pid}/fd/${fd}`)))) {
      const uid = readLines(`/proc/${pid}/status`).find((line) => line.startsWith('Uid:'))?.split(/\s+/)[2];
      if (uid !== undefined) uids.push(Number(uid));
    }
  }
  return uids;
}

/** @param {string} folder */
function names(folder) {
  return orElse(() => readdirSync(folder), []);
}

/** @param {string} path */
function link(path) {
  return orElse(() => readlinkSync(path), '');
}

/** @param {string} path */
function readLines(path) {
  return orElse(() => readFileSync(path, 'utf8').split('\n'), []);
}

/**
 * What can't be read isn't known: a process has ended, or there is no /proc.
 * @template T
 * @param {() => T} read
 * @param {T} otherwise
 */
function orElse(read, otherwise) {
  try {
    return read();
  } catch {
    return otherwise;
  }
}
