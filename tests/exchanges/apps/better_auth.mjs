// better-auth with its provider of OAuth, on a free port of 127.0.0.1: prints {"port": …}, and the clients'
// ids on its standard error; ends when its standard input does.
// node better_auth.mjs FOLDER JWK, where FOLDER holds node_modules; JWK is a public key, for client assertions
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { DatabaseSync } from 'node:sqlite';
import { pathToFileURL } from 'node:url';

console.log = console.info = console.warn = console.error; // standard output is for the first line alone
const require = createRequire(`${process.argv[2]}/`);
const theirs = (name) => import(pathToFileURL(require.resolve(name)));
const { betterAuth } = await theirs('better-auth');
const { getMigrations } = await theirs('better-auth/db/migration');
const { toNodeHandler } = await theirs('better-auth/node');
const { jwt } = await theirs('better-auth/plugins');
const { oauthProvider } = await theirs('@better-auth/oauth-provider');

const server = createServer();
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const { port } = server.address();
const baseURL = `http://127.0.0.1:${port}`;

const options = {
  baseURL,
  secret: randomBytes(32).toString('hex'),
  database: new DatabaseSync(':memory:'),
  emailAndPassword: { enabled: true },
  telemetry: { enabled: false },
  rateLimit: { enabled: false },
  plugins: [
    jwt(),
    oauthProvider({
      loginPage: '/login',
      consentPage: '/consent',
      scopes: ['openid', 'profile', 'email', 'offline_access'],
      silenceWarnings: { oauthAuthServerConfig: true, openidConfig: true },
    }),
  ],
};
await (await getMigrations(options)).runMigrations();
const auth = betterAuth(options);
server.on('request', toNodeHandler(auth));

const alice = { name: 'Alice', email: 'alice@example.com', password: 'any-will-do' };
const { headers: signedUp } = await auth.api.signUpEmail({ body: alice, returnHeaders: true });
const cookie = signedUp.getSetCookie().map((line) => line.split(';')[0]).join('; ');
const client = (more) =>
  auth.api.adminCreateOAuthClient({
    headers: new Headers({ cookie }),
    body: { redirect_uris: ['http://127.0.0.1/callback'], skip_consent: true, ...more },
  });
const grant_types = ['authorization_code', 'refresh_token'];
const clients = {
  native: await client({
    token_endpoint_auth_method: 'none',
    application_type: 'native',
    grant_types,
    dpop_bound_access_tokens: true,
  }),
  lax: await client({ token_endpoint_auth_method: 'none', application_type: 'native', grant_types }),
  asserting: await client({
    token_endpoint_auth_method: 'private_key_jwt',
    redirect_uris: ['https://client.example/callback'],
    grant_types: ['client_credentials'],
    jwks: { keys: [JSON.parse(process.argv[3])] },
  }),
};
const ids = Object.fromEntries(Object.entries(clients).map(([name, { client_id }]) => [name, client_id]));
process.stderr.write(`clients ${JSON.stringify(ids)}\n`);
process.stdout.write(`${JSON.stringify({ port })}\n`);
process.stdin.on('close', () => process.exit()).resume();
