// oidc-provider by its FAPI 2.0 profile, on a free port of 127.0.0.1: prints {"port": …}, and ends when
// its standard input does.
// node fapi_server.mjs FOLDER JWK, where FOLDER holds node_modules, and JWK is the client's public key
import { once } from 'node:events';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { randomBytes } from 'node:crypto';
import { pathToFileURL } from 'node:url';

console.log = console.info = console.warn = console.error; // standard output is for the port alone
const require = createRequire(`${process.argv[2]}/`);
const { default: Provider } = await import(pathToFileURL(require.resolve('oidc-provider')));

const server = createServer();
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const { port } = server.address();

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id: 'bank-client',
      token_endpoint_auth_method: 'private_key_jwt',
      token_endpoint_auth_signing_alg: 'ES256',
      jwks: { keys: [JSON.parse(process.argv[3])] },
      grant_types: ['authorization_code', 'refresh_token'],
      redirect_uris: ['https://client.example/callback'],
      dpop_bound_access_tokens: true,
    },
  ],
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  cookies: { keys: [randomBytes(32).toString('hex')] },
  enabledJWA: { dPoPSigningAlgValues: ['ES256', 'PS256', 'EdDSA'] },
  features: {
    devInteractions: { enabled: true },
    dPoP: { enabled: true, nonceSecret: randomBytes(32), requireNonce: () => true },
    fapi: { enabled: true, profile: '2.0' },
    pushedAuthorizationRequests: { enabled: true, requirePushedAuthorizationRequests: true },
  },
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  issueRefreshToken: () => true,
  jwks: { keys: [await signingKey()] },
  pkce: { required: () => true },
  rotateRefreshToken: false,
  routes: { pushed_authorization_request: '/par' },
});
provider.on('server_error', (ctx, error) => console.error(error));
for (const refused of ['grant.error', 'pushed_authorization_request.error']) {
  provider.on(refused, (ctx, error) => console.error(refused, error.error_detail ?? error.message));
}
server.on('request', provider.callback());
process.stdin.on('end', () => process.exit()).resume();
process.stdout.write(`${JSON.stringify({ port })}\n`);

async function signingKey() {
  const { privateKey } = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign']);
  const { kty, crv, x, y, d } = await crypto.subtle.exportKey('jwk', privateKey);
  return { kty, crv, x, y, d, alg: 'ES256', use: 'sig' };
}
