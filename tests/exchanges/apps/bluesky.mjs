// A Bluesky PDS on a free port of 127.0.0.1, with an account alice.test and a directory of DIDs that is gone afterwards:
// prints {"port": …}, and ends when its standard input does. A line of that is how many seconds its clock goes forward.
// node --import bind_local.mjs bluesky.mjs PACKAGES FOLDER, where PACKAGES holds node_modules
import { randomBytes } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { createRequire, registerHooks } from 'node:module';
import { createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

console.log = console.info = console.warn = console.error; // standard output is for the port alone
process.env.LOG_ENABLED = 'false';
const [packages, folder] = process.argv.slice(2);
const require = createRequire(`${packages}/`);
const ours = (path) => import(pathToFileURL(require.resolve(path)));

const now = Date.now;
let later_s = 0;
Date.now = () => now() + later_s * 1000;

// better-sqlite3 would have to be compiled; Node's own does for the few calls that are made.
const sqlite = `
  import { DatabaseSync } from 'node:sqlite';
  export default class {
    constructor(path) { this.db = new DatabaseSync(path); }
    pragma(text) { return this.db.prepare('PRAGMA ' + text).all(); }
    exec(text) { this.db.exec(text); }
    close() { this.db.close(); }
    prepare(text) {
      const made = this.db.prepare(text);
      const plain = (values) => (values ?? []).map((value) => (typeof value === 'boolean' ? Number(value) : value));
      return {
        reader: made.columns().length > 0,
        all: (values) => made.all(...plain(values)),
        run: (values) => made.run(...plain(values)),
        iterate: (values) => made.iterate(...plain(values)),
      };
    }
  }`;
registerHooks({
  resolve: (name, context, next) =>
    name === 'better-sqlite3'
      ? { url: `data:text/javascript,${encodeURIComponent(sqlite)}`, shortCircuit: true }
      : next(name, context),
});

const { PDS } = await ours('@atproto/pds');
const plc = await ours('@did-plc/server');
const directoryPort = await free();
const directory = plc.PlcServer.create({ db: plc.Database.mock(), port: directoryPort });
await directory.start();

const port = await free();
const origin = `http://localhost:${port}`;
mkdirSync(`${folder}/pds`);
const pds = await PDS.fromEnv({
  devMode: true,
  port,
  dataDirectory: `${folder}/pds`,
  blobstoreDiskLocation: `${folder}/blobs`,
  didPlcUrl: `http://localhost:${directoryPort}`,
  adminPassword: 'not-much-of-a-secret',
  jwtSecret: randomBytes(16).toString('hex'),
  dpopSecret: randomBytes(32).toString('hex'),
  plcRotationKeyK256PrivateKeyHex: randomBytes(32).toString('hex'),
  serviceHandleDomains: ['.test'],
  inviteRequired: false,
  disableSsrfProtection: true,
});
await pds.start();
const made = await fetch(`${origin}/xrpc/com.atproto.server.createAccount`, {
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ handle: 'alice.test', email: 'alice@example.com', password: 'any-will-do' }),
});
if (!made.ok) throw new Error(await made.text());

createInterface({ input: process.stdin })
  .on('line', (line) => {
    later_s += Number(line);
    console.error(`clock ${later_s}`);
  })
  .on('close', () => process.exit());
process.stdout.write(`${JSON.stringify({ port })}\n`);

async function free() {
  const server = createServer();
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}
