// The kit that every client of the agent runs: tests/kit/README.md.
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { inspect } from 'node:util';
import { AgentClient, createFetch, DPoPAgentError, proofOf, requireBound } from '../src/index.js';
import { PYTHON, ROOT, started } from './started.js';

const NO_COOKIES = "fetch keeps no cookies: Set-Cookie is the caller's";
/** Cases, or what they need, that fetch can't have, each with its reason. */
const CANNOT = {
  environment: "fetch takes proxies from a dispatcher of the caller's, not from the environment",
'credentials in URLs': 'fetch refuses them',
  a_challenges_cookie_goes_with_the_retry: NO_COOKIES,
  a_challenges_cookie_is_kept: NO_COOKIES,
  a_challenges_cookie_goes_beside_others: NO_COOKIES,
  the_last_answers_cookie_wins: NO_COOKIES,
};

const kit = await started(PYTHON, ['-m', 'tests.kit'], { cwd: ROOT });

async function ask(what, body = {}) {
  const response = await fetch(`${kit.control}/${what}`, { method: 'POST', body: JSON.stringify(body) });
  return response.json();
}

const cases = await ask('cases');

describe('the kit', () => {
  after(() => kit.close());

  test("what can't be had is still in the kit", () => {
    const known = new Set(cases.flatMap(({ name, needs }) => [name, ...needs]));
    assert.deepEqual(Object.keys(CANNOT).filter((each) => !known.has(each)), []);
  });

  for (const { name, needs } of cases) {
    if ([name, ...needs].some((each) => each in CANNOT)) continue;
    test(name, async () => {
      const { run, case: it } = await ask('begin', { case: name });
      const agent = new AgentClient({ path: kit.agent });
      const came = [];
      try {
        const send = sender(agent, it, () => ask('release', { run }));
        for (const request of it.requests) {
          came.push(...(await Promise.all(Array.from({ length: request.at_once ?? 1 }, () => send(request)))));
        }
      } finally {
        agent.close();
        const { faults } = await ask('end', { run, came });
        assert.deepEqual(faults, []);
      }
    });
  }
});

/** Sends a request of a case, and says what came. */
function sender(agent, { client }, release) {
  const plain = createFetch(agent, client);
  const granted = createFetch(agent, { ...client, getToken: grant(plain, client) });
  return async (request) => {
    const { access_token: token, jkt } = request;
    const init = { ...bodyOf(request.body), method: request.method ?? 'GET', headers: [...(bodyOf(request.body).headers ?? []), ...(request.headers ?? [])], redirect: request.follow === false ? 'manual' : 'follow' };
    if (token || jkt) init.dpop = token ? { accessToken: token.access_token, jkt: token.jkt } : { jkt };
    try {
      const response = await (request.grant ? granted : plain)(request.url, init);
      return { status: response.status, body: await bodyRead(response, request.read ?? 'all', release) };
    } catch (error) {
      return { error: error instanceof DPoPAgentError ? error.type : httpError(error), shown: `${inspect(error)} ${error.stack}` };
    }
  };
}

function httpError(error) {
  if (error instanceof TypeError) return 'http'; // what fetch rejects with
  throw error;
}

function bodyOf(body) {
  if (!body) return {};
  if ('text' in body) return { body: body.text, headers: [['Content-Type', 'text/plain']] };
  if ('form' in body) return { body: new URLSearchParams(body.form) };
  if ('file' in body) return { body: new Blob([body.file]).slice(body.from ?? 0) }; // as fs.openAsBlob gives one
  if ('generator' in body) return { body: new Blob(body.generator).stream(), duplex: 'half' };
  if ('multipart' in body) {
    const form = new FormData();
    form.set('file', new Blob([body.multipart]), body.filename);
    return { body: form };
  }
  throw new Error(`no body: ${Object.keys(body)}`);
}

async function bodyRead(response, read, release) {
  if (read === 'all') return response.text();
  const reader = response.body.getReader();
  if (read === 'none') {
    await reader.cancel();
    return '';
  }
  const parts = [];
  for (let next = await reader.read(); !next.done; next = await reader.read()) {
    if (parts.push(next.value) === 1) await release();
  }
  return Buffer.concat(parts).toString();
}

/** An access token that is kept and renewed: one renewal at a time, others wait for it. */
function grant(send, { grant: first, token_endpoint: endpoint }) {
  let token = first && bound(first);
  let renewing;
  return async ({ refused }) => {
    if (token && token.accessToken !== refused?.accessToken && !(token.renewAt <= Date.now())) return token;
    renewing ??= renew(token).finally(() => (renewing = undefined));
    return (token = await renewing);
  };

  async function renew(old) {
    const form = old?.refreshToken ? { grant_type: 'refresh_token', refresh_token: old.refreshToken } : { grant_type: 'client_credentials' };
    const response = await send(endpoint, { method: 'POST', body: new URLSearchParams(form), dpop: { jkt: old?.refreshToken && old.jkt } });
    const { jkt } = proofOf(response);
    if (!response.ok) throw new TypeError(`the renewal was answered with ${response.status}`);
    return bound({ jkt, ...requireBound(await response.json(), { jkt }) });
  }
}

function bound({ access_token: accessToken, jkt, refresh_token: refreshToken, expires_at: expiresAt, expires_in: expiresIn }) {
  const left = expiresAt === undefined ? expiresIn : expiresAt - Date.now() / 1000;
  return { accessToken, jkt, refreshToken, renewAt: Date.now() + (left - Math.min(30, left / 2)) * 1000 };
}
