import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const HERE = fileURLToPath(new URL('../', import.meta.url));

test('the types are those that the code has, and it has them by tsc', () => {
  const folder = mkdtempSync('/tmp/dpop-');
  try {
    tsc('--project', `${HERE}tsconfig.json`, '--outDir', folder);
    assert.deepEqual(filesIn(`${HERE}types`), filesIn(folder), 'npm run types');
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('an application in TypeScript has its types, with the SDKs beside it', () => {
  tsc('--ignoreConfig', '--noEmit', '--strict', '--skipLibCheck', '--target', 'es2022', '--module', 'nodenext', '--types', 'node', `${HERE}test/application.ts`);
});

function tsc(...words) {
  try {
    execFileSync(process.execPath, [`${HERE}node_modules/typescript/bin/tsc`, ...words], { cwd: HERE, encoding: 'utf8' });
  } catch (error) {
    assert.fail(error.stdout);
  }
}

function filesIn(folder) {
  return Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(`${folder}/${name}`, 'utf8')]));
}
