// Where the agent's socket is, and whether that place is safe: PROTOCOL.md, "Connecting".
import { lstatSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { basename, dirname, isAbsolute, join } from 'node:path';
import { configuration, DPoPAgentError, unavailable, unsafe } from './errors.js';

/** @import { Stats } from 'node:fs' */

const APP = 'dpop-agent';
const MAX_SOCKET_PATH = process.platform === 'darwin' ? 103 : 107; // sun_path (unix(7))
const OTHERS_WRITE = 0o022;
const STICKY = 0o1000;
const MAX_LINKS = 40; // as the kernel has it (path_resolution(7))
const EVERYBODY = 2 ** 32 - 1; // uids that the machine's own namespace maps
const ANOTHER = 'set DPOP_AGENT_SOCK to a path in a folder of your own';

/** `$DPOP_AGENT_SOCK`, else `dpop-agent/agent.sock` in the user's runtime folder. */
export function agentSocket() {
  return process.env.DPOP_AGENT_SOCK || join(runtimeFolder(), APP, 'agent.sock');
}

function runtimeFolder() {
  if (process.env.XDG_RUNTIME_DIR) return process.env.XDG_RUNTIME_DIR;
  if (process.platform === 'darwin') return join(homedir(), 'Library/Caches/TemporaryItems');
  const usual = `/run/user/${ownUid()}`;
  const info = lstatSync(usual, { throwIfNoEntry: false });
  const fits = info?.isDirectory() && info.uid === ownUid() && (info.mode & 0o777) === 0o700;
  return fits ? usual : join(tmpdir(), `runtime-${ownUid()}`);
}

function ownUid() {
  const uid = process.getuid?.();
  if (uid === undefined) {
    throw configuration('there is no Unix socket of a user here', 'use Linux or macOS');
  }
  return uid;
}

/**
 * Refuse a socket that somebody else could have put there, or could put another in place of.
 *
 * The folder is ours, with no permission for others, or root's and writable for nobody else (a
 * sandbox's); only we and root can change the way to it; and the socket is one that our uid bound.
 * @param {string} path
 */
export function checkSocket(path) {
  if (!isAbsolute(path)) {
    throw configuration(`the socket's path ${JSON.stringify(path)} isn't absolute`, 'set DPOP_AGENT_SOCK to a full path');
  }
  const length = Buffer.byteLength(path);
  if (length > MAX_SOCKET_PATH) {
    throw configuration(`the socket's path has ${length} bytes, more than the ${MAX_SOCKET_PATH} that work`, 'set DPOP_AGENT_SOCK to a shorter path');
  }
  const folder = dirname(path);
  const found = join(wayInto(dirname(folder)), basename(folder));
  checkFolder(found, looked(found) ?? nobody(path));
  const socket = join(found, basename(path));
  const info = looked(socket) ?? nobody(path);
  if (!info.isSocket()) throw unsafe(`${socket} isn't a socket`, 'set DPOP_AGENT_SOCK to another path');
  if (!isOwn(info.uid)) {
    throw unsafe(`the socket ${socket} belongs to uid ${info.uid}, not to uid ${ownUid()}`, ANOTHER);
  }
}

/**
 * @param {string} path
 * @returns {never}
 */
function nobody(path) {
  throw unavailable(`no agent listens at ${path}`);
}

/**
 * @param {string} folder
 * @param {Stats} info
 */
function checkFolder(folder, info) {
  if (info.isSymbolicLink()) throw unsafe(`${folder} is a symbolic link`, 'name the folder itself');
  if (!info.isDirectory()) throw unsafe(`${folder} isn't a folder`, 'set DPOP_AGENT_SOCK to another path');
  if (isOwn(info.uid)) {
    if (info.mode & 0o077) throw unsafe(`${folder} has mode ${octal(info)}: others can reach it`, `chmod 700 ${typed(folder)}`);
  } else if (!isRoots(info.uid)) {
    throw unsafe(`${folder} belongs to uid ${info.uid}, not to uid ${ownUid()}`, ANOTHER);
  } else if (info.mode & OTHERS_WRITE) {
    throw unsafe(`${folder} has mode ${octal(info)}: others can replace what is in it`, ANOTHER);
  }
}

/**
 * A folder's path without links, once each folder on the way and each link is safe.
 * @param {string} folder
 */
function wayInto(folder) {
  let place = '/';
  let info = lstatSync(place);
  let links = 0;
  const names = namesOf(folder);
  for (let name = names.pop(); name !== undefined; name = names.pop()) {
    checkEntered(place, info);
    const found = join(place, name);
    const there = looked(found);
    if (!there) {
      throw unsafe(`there is no folder ${found}, which the socket's folder is to be in`, 'start the agent: dpop-agent serve; or set DPOP_AGENT_SOCK');
    }
    if (!isOwn(there.uid) && !isRoots(there.uid)) {
      throw unsafe(`${found}, above the socket, belongs to uid ${there.uid}`, ANOTHER);
    }
    if (!there.isSymbolicLink()) {
      [place, info] = [found, there];
      continue;
    }
    links += 1;
    if (links > MAX_LINKS) throw unsafe(`${folder} goes through too many symbolic links`, ANOTHER);
    const target = readlinkSync(found);
    names.push(...namesOf(target));
    if (isAbsolute(target)) [place, info] = ['/', lstatSync('/')];
  }
  checkEntered(place, info);
  return place;
}

/**
 * What a path goes through, the first name last.
 * @param {string} path
 */
function namesOf(path) {
  return path.split('/').filter((name) => name !== '' && name !== '.').reverse();
}

/** @param {string} place */
function looked(place) {
  try {
    return lstatSync(place, { throwIfNoEntry: false });
  } catch (error) {
    throw new DPoPAgentError('agent_unavailable', `the agent's socket can't be reached: ${codeOf(error)} at ${place}`, { hint: ANOTHER });
  }
}

/**
 * @param {string} place
 * @param {Stats} info
 */
function checkEntered(place, info) {
  if (info.isDirectory() && info.mode & OTHERS_WRITE && !(info.mode & STICKY)) {
    throw unsafe(`${place}, above the socket, has mode ${octal(info)}: others can replace what is in it`, `chmod go-w ${typed(place)}; or ${ANOTHER}`);
  }
}

/**
 * A path in a command that is to be typed.
 * @param {string} path
 */
function typed(path) {
  return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", `'"'"'`)}'`;
}

/** @param {Stats} info */
function octal(info) {
  return (info.mode & 0o7777).toString(8).padStart(4, '0');
}

/** @param {unknown} error */
export function codeOf(error) {
  return error instanceof Error && 'code' in error ? String(error.code) : 'an error';
}

/**
 * Whether that uid is ours; the overflow uid of a user namespace never is, since it is anybody's.
 * @param {number} uid
 */
export function isOwn(uid) {
  return uid === ownUid() && uid !== unmapped().uid;
}

/** @param {number} uid */
function isRoots(uid) {
  return uid === 0 || (unmapped().withRoot && uid === unmapped().uid);
}

/** @type {{ uid: number | null, withRoot: boolean } | undefined} */
let known;

/** The overflow uid, null where nobody is shown by it; and whether it stands for root (user_namespaces(7)). */
function unmapped() {
  return (known ??= readUnmapped());
}

function readUnmapped() {
  const setting = '/proc/sys/kernel/overflowuid';
  try {
    const map = readFileSync('/proc/self/uid_map', 'latin1').trim().split('\n');
    const mapped = map.reduce((sum, line) => sum + Number(line.trim().split(/\s+/)[2]), 0);
    if (mapped >= EVERYBODY) return { uid: null, withRoot: false };
    const uid = Number(readFileSync(setting, 'latin1'));
    return { uid, withRoot: statSync(setting).uid === uid }; // the kernel's settings are root's
  } catch {
    return { uid: null, withRoot: false }; // no Linux, or no /proc
  }
}
