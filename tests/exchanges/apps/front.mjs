// What stands before a server: ends TLS, speaks HTTP/2 and 1.1, and hands requests on. Prints {"port": …}, and ends when
// its standard input does.
// node front.mjs FOLDER SETTINGS, where FOLDER holds cert.pem and key.pem. SETTINGS is JSON: target, the server's port;
// forwarded, tell it of TLS; prefix, a path that it doesn't see; moved, paths from which it redirects.
import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { createSecureServer } from 'node:http2';

const folder = process.argv[2];
const { target, forwarded, prefix = '', moved = {} } = JSON.parse(process.argv[3]);
const server = createSecureServer({
  allowHTTP1: true,
  cert: readFileSync(`${folder}/cert.pem`),
  key: readFileSync(`${folder}/key.pem`),
});
const ofOneHop = new Set(['connection', 'keep-alive', 'transfer-encoding']);

server.on('request', (incoming, answer) => {
  if (moved[incoming.url]) {
    answer.writeHead(308, { location: moved[incoming.url] });
    answer.end();
    return;
  }
  const headers = Object.fromEntries(Object.entries(incoming.headers).filter(([name]) => !name.startsWith(':')));
  headers.host = incoming.headers.host ?? incoming.headers[':authority'];
  if (forwarded) headers['x-forwarded-proto'] = 'https';
  const path = incoming.url.startsWith(prefix) ? incoming.url.slice(prefix.length) : incoming.url;
  const onward = request({ host: '127.0.0.1', port: target, path, method: incoming.method, headers }, (response) => {
    answer.sendDate = false; // it is the server's
    const kept = Object.entries(response.headers).filter(([name]) => !ofOneHop.has(name));
    answer.writeHead(response.statusCode, Object.fromEntries(kept));
    response.pipe(answer);
  });
  onward.on('error', () => answer.writeHead(502).end());
  incoming.pipe(onward);
});
server.listen(0, '127.0.0.1', () => process.stdout.write(`${JSON.stringify({ port: server.address().port })}\n`));
process.stdin.on('close', () => process.exit()).resume();
