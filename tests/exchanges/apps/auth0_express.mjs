// An API behind express-oauth2-jwt-bearer, on a free port of 127.0.0.1: prints {"port": …}, and ends when its standard
// input does.
// node auth0_express.mjs FOLDER JWKS, where FOLDER holds node_modules and JWKS is the issuer's, in JSON
import { createRequire } from 'node:module';

process.env.NODE_ENV = 'production'; // or express shows the stack
const require = createRequire(`${process.argv[2]}/`);
const express = require('express');
const { auth, requiredScopes } = require('express-oauth2-jwt-bearer');

const app = express();
app.get('/jwks', (request, response) => response.type('json').send(process.argv[3]));
const server = app.listen(0, '127.0.0.1', () => {
  const { port } = server.address();
  const settings = {
    issuer: 'https://issuer.example/',
    jwksUri: `http://127.0.0.1:${port}/jwks`,
    audience: 'https://api.example',
  };
  app.use(auth({ ...settings, tokenSigningAlg: 'RS256', dpop: { enabled: true, required: false } }));
  app.post('/orders', (request, response) => response.status(201).json({ order: 1 }));
  app.delete('/orders', requiredScopes('delete:orders'), (request, response) => response.status(204).end());
  app.get('/orders', (request, response) => response.json({ orders: [] }));
  process.stdout.write(`${JSON.stringify({ port })}\n`);
});
process.stdin.on('close', () => process.exit()).resume();
