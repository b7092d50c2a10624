// SPDX-License-Identifier: Apache-2.0
// tests/support/peer_logits.mjs - what llama.cpp computes of given tokens.
//
// Usage: node peer_logits.mjs FOLDER JOBS.json
// FOLDER has node_modules with node-llama-cpp and its prebuilt library. JOBS is
// a list of {model, tokens, out, greedy, windows}: tokens is a file of int32
// ids. With "out" the logits of each (float32, row by row) are written there;
// with "greedy" so many likeliest tokens after them are chosen one by one; with
// "windows": n the tokens are read in windows of n, each afresh, and the sum of
// -log p of all but the first of each is given. Keys and values are kept in
// float32, flash attention is off: the most exact that llama.cpp can.
// Prints a list of {greedy, nll, scored}, and as the last the version.
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, jobFile] = process.argv.slice(2);
const peer = path.join(folder, 'node_modules/node-llama-cpp');
const { getLlama, LlamaLogLevel } =
  await import(pathToFileURL(path.join(peer, 'dist/index.js')));
const llama = await getLlama({
  gpu: false, build: 'never', skipDownload: true, progressLogs: false,
  maxThreads: 0, logLevel: LlamaLogLevel.error,
});

// Logits as an array, from the map that the library gives.
function dense(map, row) {
  for (const [token, logit] of map) row[token] = logit;
  return row;
}

function nllOf(map, target) {
  let most = -Infinity;
  let sum = 0;
  for (const logit of map.values()) most = Math.max(most, logit);
  for (const logit of map.values()) sum += Math.exp(logit - most);
  return most + Math.log(sum) - map.get(target);
}

function likeliest(map) {
  let best = -1;
  for (const [token, logit] of map)
    if (best < 0 || logit > map.get(best) ||
        (logit === map.get(best) && token < best)) best = token;
  return best;
}

// The map of logits after each token; the sequence goes on where it was.
async function evaluate(sequence, tokens) {
  const results = await sequence.controlledEvaluate(
    tokens.map((token) => [token, { generateNext: { logits: true } }]));
  return results.map((result) => result.next.logits);
}

async function score(sequence, tokens, size) {
  const result = { nll: 0, scored: 0 };
  for (let at = 0; at < tokens.length; at += size) {
    const window = tokens.slice(at, at + size);
    await sequence.clearHistory();
    const maps = await evaluate(sequence, window);
    for (let i = 0; i + 1 < window.length; i++, result.scored++)
      result.nll += nllOf(maps[i], window[i + 1]);
  }
  return result;
}

async function logits(sequence, tokens, job) {
  const result = { greedy: [] };
  const maps = await evaluate(sequence, tokens);
  const size = maps[0].size;
  const all = new Float32Array(tokens.length * size);
  maps.forEach((map, i) => dense(map, all.subarray(i * size, (i + 1) * size)));
  if (job.out) fs.writeFileSync(job.out, Buffer.from(all.buffer));
  let last = maps[maps.length - 1];
  for (let i = 0; i < (job.greedy ?? 0); i++) {
    result.greedy.push(likeliest(last));
    [last] = await evaluate(sequence, result.greedy.slice(-1));
  }
  return result;
}

const results = [];
for (const job of JSON.parse(fs.readFileSync(jobFile))) {
  const bytes = fs.readFileSync(job.tokens);
  const tokens = [...new Int32Array(
    bytes.buffer, bytes.byteOffset, bytes.length / 4)];
  const model = await llama.loadModel({ modelPath: path.resolve(job.model) });
  const context = await model.createContext({
    contextSize: (job.windows ?? tokens.length + (job.greedy ?? 0)) + 8,
    batchSize: 512, threads: 1, flashAttention: false,
    experimentalKvCacheKeyType: 'F32', experimentalKvCacheValueType: 'F32',
  });
  const sequence = context.getSequence();
  results.push(job.windows ? await score(sequence, tokens, job.windows)
    : await logits(sequence, tokens, job));
  await context.dispose();
  await model.dispose();
}
results.push(JSON.parse(
  fs.readFileSync(path.join(peer, 'llama/llama.cpp.info.json'))).tag);
console.log(JSON.stringify(results));
process.exit(0);
