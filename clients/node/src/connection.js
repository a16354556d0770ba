// One connection to the agent: requests out, answers by id in.
import { connect as open } from 'node:net';
import { GRACE_MS, MAX_LINE, readLine, SUBSCRIBE, timedOut, TOUCH_TIMEOUT_MS } from './answers.js';
import { broken, DPoPAgentError, unavailable } from './errors.js';
import { checkListener } from './listener.js';
import { checkSocket, codeOf } from './places.js';

/**
 * @import { Socket } from 'node:net'
 * @import { Json, Touch } from './answers.js'
 */

const MAX_UNDER_WAY = 32; // half of what an agent takes; further requests wait here
const RETRY_CONNECT_MS = 5; // while the listener's backlog is full
const NEWLINE = 0x0a;

/** One request, and how long its answer is waited for. */
export class Call {
  #fail;
  #timer;
  #deadline;
  #timeoutMs;
  #onTouch;
  #unlisten;

  /**
   * @param {number} id
   * @param {string} line
   * @param {number} timeoutMs
   * @param {((touch: Touch) => unknown) | undefined} onTouch
   * @param {AbortSignal | undefined} signal
   */
  constructor(id, line, timeoutMs, onTouch, signal) {
    this.id = id;
    this.line = line;
    this.over = false;
    this.#timeoutMs = timeoutMs;
    this.#onTouch = onTouch;
    /** @type {(error: unknown) => void} */
    let reject = () => {};
    /** Rejected once nobody waits any longer. @type {Promise<never>} */
    this.givenUp = new Promise((_, rejects) => (reject = rejects));
    this.givenUp.catch(() => {});
    /** @param {unknown} error */
    this.#fail = (error) => {
      this.over = true;
      reject(error);
    };
    this.#deadline = performance.now() + timeoutMs + GRACE_MS;
    this.#timer = this.#untilDeadline();
    const abort = () => this.#fail(signal?.reason);
    if (signal?.aborted) abort();
    signal?.addEventListener('abort', abort, { once: true });
    this.#unlisten = () => signal?.removeEventListener('abort', abort);
  }

  #untilDeadline() {
    return setTimeout(() => this.#fail(timedOut(this.#timeoutMs)), this.#deadline - performance.now());
  }

  /**
   * A touch has a deadline of its own.
   * @param {Touch} touch
   */
  waitsFor(touch) {
    if (this.over) return;
    const deadline = performance.now() + TOUCH_TIMEOUT_MS + GRACE_MS;
    if (deadline > this.#deadline) {
      clearTimeout(this.#timer);
      this.#timeoutMs = TOUCH_TIMEOUT_MS;
      this.#deadline = deadline;
      this.#timer = this.#untilDeadline();
    }
    try {
      this.#onTouch?.(touch);
    } catch (error) {
      this.#fail(error); // the caller's own
    }
  }

  end() {
    this.over = true;
    clearTimeout(this.#timer);
    this.#unlisten();
  }
}

/** Why there is no answer: the agent closed the connection, and nothing of one came. */
export const CLOSED = Symbol('closed');

/** The client closed it. */
const LEFT = new DPoPAgentError('agent_unavailable', 'the client was closed');

/** @typedef {Json | DPoPAgentError | typeof CLOSED} Outcome */

export class Connection {
  closed = false;
  #socket;
  #leaving = false;
  #greeting = SUBSCRIBE; // goes out with the first request
  /** @type {Buffer} */
  #received = Buffer.alloc(0);
  /** @type {Map<number, { call: Call, settle: (outcome: Outcome) => void }>} */
  #unanswered = new Map();
  /** @type {(() => void)[]} */
  #waiting = [];
  /** @type {DPoPAgentError | typeof CLOSED} */
  #why = CLOSED;

  /** @param {Socket} socket */
  constructor(socket) {
    this.#socket = socket;
    socket.on('data', (data) => this.#receive(data));
    socket.on('error', () => {}); // 'close' follows
    socket.on('close', () => this.#lost());
    this.#letGo();
  }

  get usable() {
    return !this.closed && !this.#leaving;
  }

  /**
   * @param {Call} call
   * @returns {Promise<Outcome>}
   */
  async ask(call) {
    while (this.usable && this.#unanswered.size >= MAX_UNDER_WAY && !call.over) {
      await new Promise((resolve) => this.#waiting.push(() => resolve(undefined)));
    }
    if (call.over) this.#waiting.shift()?.(); // whoever is next has its place
    if (this.closed || call.over) return this.#why;
    call.givenUp.catch((error) => this.#abandoned(error));
    return new Promise((settle) => {
      this.#unanswered.set(call.id, { call, settle });
      this.#socket.ref();
      this.#socket.write(this.#greeting + call.line);
      this.#greeting = '';
    });
  }

  /**
   * A late answer to an abandoned call is dropped; an agent that lets a deadline pass isn't asked here again.
   * @param {unknown} error
   */
  #abandoned(error) {
    if (error instanceof DPoPAgentError && error.type === 'timeout') this.#leaving = true;
    this.#letGo();
  }

  #letGo() {
    if ([...this.#unanswered.values()].some(({ call }) => !call.over)) return;
    this.#socket.unref(); // a process ends though its connection is idle
    if (this.#leaving) this.#socket.destroy();
  }

  close() {
    this.#breakOff(LEFT);
  }

  /** @param {Buffer} data */
  #receive(data) {
    this.#received = this.#received.length ? Buffer.concat([this.#received, data]) : data;
    try {
      while (!this.closed && this.#takeLine());
    } catch (error) {
      this.#breakOff(error instanceof DPoPAgentError ? error : broken("the agent's answer can't be read"));
    }
    this.#letGo();
  }

  #takeLine() {
    const end = this.#received.indexOf(NEWLINE);
    if ((end < 0 ? this.#received.length : end + 1) > MAX_LINE) {
      throw broken(`the agent's answer has more than ${MAX_LINE} bytes`);
    }
    if (end < 0) return false;
    const line = readLine(this.#received.subarray(0, end));
    this.#received = this.#received.subarray(end + 1);
    if (!line) return true;
    const asked = line.id === null ? undefined : this.#unanswered.get(line.id);
    if (line.touch) {
      asked?.call.waitsFor(line.touch);
      return true;
    }
    if (!asked || line.id === null) throw broken("the agent answered a request that wasn't made");
    this.#unanswered.delete(line.id);
    asked.settle(line.error ?? line.result ?? CLOSED);
    this.#waiting.shift()?.();
    return true;
  }

  #lost() {
    this.#breakOff(
      this.#received.length ? unavailable('the agent went away in the middle of its answer') : CLOSED,
    );
  }

  /** @param {DPoPAgentError | typeof CLOSED} why */
  #breakOff(why) {
    if (this.closed) return;
    this.closed = true;
    this.#why = why;
    const unanswered = [...this.#unanswered.values()];
    this.#unanswered.clear();
    for (const { settle } of unanswered) settle(why);
    for (const wake of this.#waiting.splice(0)) wake();
    this.#socket.destroy();
  }
}

/**
 * A connection to the agent at that path; nothing is sent before the place is known to be ours.
 * @param {string} path
 * @param {() => boolean} wanted whether anybody still waits for it
 */
export async function connect(path, wanted) {
  for (;;) {
    checkSocket(path);
    checkListener(path);
    try {
      const connection = new Connection(await connected(path));
      // Refusing a connection, an agent says why before it closes, and a write that fails would hide it.
      await turn();
      await turn();
      return connection;
    } catch (error) {
      const code = codeOf(error);
      if (code === 'ENOENT' || code === 'ECONNREFUSED') throw unavailable(`no agent listens at ${path}`);
      if (code !== 'EAGAIN' || !wanted()) throw unavailable(`the agent's socket ${path} can't be reached: ${code}`);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_CONNECT_MS));
  }
}

/** Until what has come by now was read. */
function turn() {
  return new Promise((resolve) => setImmediate(resolve));
}

/**
 * @param {string} path
 * @returns {Promise<Socket>}
 */
function connected(path) {
  return new Promise((resolve, reject) => {
    const socket = open(path);
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      resolve(socket);
    });
  });
}
