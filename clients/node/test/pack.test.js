import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { agentWith, ROOT } from './started.js';

const HERE = fileURLToPath(new URL('../', import.meta.url));

test('what npm packs installs into an empty project, alone, and signs there', async () => {
  const project = mkdtempSync('/tmp/dpop-');
  const agent = await agentWith('default');
  try {
    const [{ filename, files }] = JSON.parse(npm(HERE, 'pack', '--json', '--pack-destination', project));
    const shipped = files.map(({ path }) => path);
    assert.deepEqual(shipped.filter((path) => !/^(src|types)\/\w+(\.d)?\.[jt]s$/.test(path)), ['LICENSE', 'README.md', 'package.json']);
    writeFileSync(`${project}/package.json`, '{ "private": true, "type": "module" }');
    npm(project, 'install', '--offline', `./${filename}`);
    const { packages } = JSON.parse(readFileSync(`${project}/package-lock.json`, 'utf8'));
    assert.deepEqual(Object.keys(packages), ['', 'node_modules/dpop-agent']);

    writeFileSync(`${project}/main.js`, `
      import { AgentClient } from 'dpop-agent';
      console.log((await new AgentClient().proof('GET', 'https://api.example.com/')).key);
    `);
    const child = spawn(process.execPath, ['main.js'], { cwd: project, env: agent.env, stdio: ['ignore', 'pipe', 'inherit'] });
    const [shown] = await once(child.stdout, 'data');
    assert.equal(String(shown), 'default\n');
    const [status] = await once(child, 'exit');
    assert.equal(status, 0);
  } finally {
    await agent.close();
    rmSync(project, { recursive: true });
  }
});

test("its version and licence are the project's", () => {
  const [, version] = /__version__ = "(.+)"/.exec(readFileSync(`${ROOT}dpop_agent/__init__.py`, 'utf8'));
  for (const file of ['package.json', 'package-lock.json']) {
    assert.equal(JSON.parse(readFileSync(HERE + file, 'utf8')).version, version.replace('.dev', '-dev.'));
  }
  assert.equal(readFileSync(`${HERE}LICENSE`, 'utf8'), readFileSync(`${ROOT}LICENSE`, 'utf8'));
});

function npm(cwd, ...words) {
  const program = process.env.npm_execpath; // npm sets it, and so does tests/servers/test_node_client.py
  assert.ok(program, 'run it by npm test');
  return execFileSync(process.execPath, [program, ...words], { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}
