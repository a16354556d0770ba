// oidc-provider on a free port of 127.0.0.1: prints {"port": …}, logs each response on its standard
// error, and ends when its standard input does. A line of its standard input is how many seconds its
// clock goes forward.
// node authorization_server.mjs FOLDER [NONCES], where FOLDER holds node_modules. NONCES: required, in
// each proof, and so without this word; optional; none, it has none; misconfigured, it wants them but
// can't make them; off, it knows nothing of DPoP.
import { once } from 'node:events';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { randomBytes } from 'node:crypto';
import { pathToFileURL } from 'node:url';

console.log = console.info = console.warn = console.error; // standard output is for the port alone
const require = createRequire(`${process.argv[2]}/`);
const { default: Provider } = await import(pathToFileURL(require.resolve('oidc-provider')));

const now = Date.now;
let later_s = 0;
Date.now = () => now() + later_s * 1000;

const nonces = process.argv[3] ?? 'required';
const dPoP = {
  enabled: nonces !== 'off',
  ...(['required', 'optional'].includes(nonces) && { nonceSecret: randomBytes(32) }),
  requireNonce: () => ['required', 'misconfigured'].includes(nonces),
};

const server = createServer();
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const { port } = server.address();
const origin = `http://127.0.0.1:${port}`;

const grants = ['authorization_code', 'refresh_token'];
const bound = { dpop_bound_access_tokens: dPoP.enabled || undefined, response_types: ['code'] };
const provider = new Provider(origin, {
  clients: [
    {
      ...bound,
      client_id: 'native',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      grant_types: grants,
      redirect_uris: ['http://127.0.0.1/callback'],
    },
    {
      ...bound,
      client_id: 'confidential',
      client_secret: 'not-much-of-a-secret',
      grant_types: [...grants, 'client_credentials'],
      redirect_uris: ['https://client.example/callback'],
    },
    {
      client_id: 'asserting',
      token_endpoint_auth_method: 'private_key_jwt',
      token_endpoint_auth_signing_alg: 'ES256',
      jwks: { keys: [publicPart(await signingKey())] },
      grant_types: ['client_credentials'],
      response_types: [],
      redirect_uris: [],
    },
  ],
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  cookies: { keys: [randomBytes(32).toString('hex')] },
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: true },
    dPoP,
    introspection: { enabled: true },
    revocation: { enabled: true },
    pushedAuthorizationRequests: { enabled: true, requirePushedAuthorizationRequests: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      getResourceServerInfo: (ctx, resource) => ({
        audience: resource,
        scope: 'read',
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'ES256' } },
      }),
      useGrantedResource: () => false,
    },
  },
  issueRefreshToken: () => true,
  jwks: { keys: [await signingKey()] },
  scopes: ['openid', 'offline_access', 'read'],
  pkce: { required: () => true },
});
provider.proxy = true; // believes X-Forwarded-Proto
provider.use(async (ctx, next) => {
  await next();
  console.error(`response ${ctx.method} ${ctx.path} ${ctx.status}`);
  if (ctx.body?.error) console.error(`error ${ctx.path} ${ctx.body.error}`);
});
server.on('request', provider.callback());
createInterface({ input: process.stdin })
  .on('line', (line) => {
    later_s += Number(line);
    console.error(`clock ${later_s}`);
  })
  .on('close', () => process.exit());
process.stdout.write(`${JSON.stringify({ port })}\n`);

function publicPart({ d, ...jwk }) {
  return jwk;
}

async function signingKey() {
  const { privateKey } = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign']);
  const { kty, crv, x, y, d } = await crypto.subtle.exportKey('jwk', privateKey);
  return { kty, crv, x, y, d, alg: 'ES256', use: 'sig' };
}
