// SPDX-License-Identifier: Apache-2.0
// tests/support/peer_speed.mjs - how fast llama.cpp reads and writes tokens.
//
// Usage: node peer_speed.mjs FOLDER MODEL.gguf
// FOLDER has node_modules with node-llama-cpp and its prebuilt library. Each
// line of standard input is {context, threads, flash, batch, tokens}: read
// `context` random tokens, then choose `tokens` more. Each answer is a line
// {prefill, decode}, tokens a second by the library's own clock, which leaves
// out what JavaScript adds; {wallPrefill, wallDecode} have it.
import fs from 'node:fs';
import path from 'node:path';
import readline from 'node:readline';
import { pathToFileURL } from 'node:url';

const [folder, modelPath] = process.argv.slice(2);
const peer = path.join(folder, 'node_modules/node-llama-cpp');
const { getLlama, LlamaLogLevel } =
  await import(pathToFileURL(path.join(peer, 'dist/index.js')));
const logs = [];
const llama = await getLlama({
  gpu: false, build: 'never', skipDownload: true, progressLogs: false,
  maxThreads: 0, logLevel: LlamaLogLevel.debug,
  logger: (level, message) => logs.push(message),
});
const model = await llama.loadModel({ modelPath: path.resolve(modelPath) });
const nVocab = model.fileInfo.metadata.tokenizer.ggml.tokens.length;

let state = 12345;
function random(n) {
  state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
  return state % n;
}

// Tokens a second of the two lines that the library prints of its timings.
async function ownTimings(context) {
  logs.length = 0;
  await context.printTimings();
  const text = logs.join('');
  const rate = (name) => Number(new RegExp(
    `(?:^|\\s)${name} time =[^\\n]*?([0-9.]+) tokens per second`)
    .exec(text.replace('prompt eval', 'prompt-eval'))?.[1]);
  return { prefill: rate('prompt-eval'), decode: rate('eval') };
}

async function measure({ context: n, threads, flash, batch, tokens }) {
  const context = await model.createContext({
    contextSize: n + tokens + 64, batchSize: batch, threads,
    flashAttention: flash, performanceTracking: true,
  });
  const sequence = context.getSequence();
  const prompt = Array.from({ length: n }, () => 300 + random(nVocab - 300));
  let start = performance.now();
  await sequence.evaluateWithoutGeneratingNewTokens(prompt);
  const wallPrefill = n / (performance.now() - start) * 1000;
  let made = 0;
  start = performance.now();
  const next = sequence.evaluateWithMetadata(
    [300], {}, { temperature: 0, yieldEogToken: true });
  for await (const _ of next) if (++made >= tokens) break;
  const wallDecode = made / (performance.now() - start) * 1000;
  const own = await ownTimings(context);
  await context.dispose();
  return { ...own, wallPrefill, wallDecode };
}

const version = JSON.parse(
  fs.readFileSync(path.join(peer, 'llama/llama.cpp.info.json'))).tag;
console.log(JSON.stringify({ version, system: llama.systemInfo }));
for await (const line of readline.createInterface({ input: process.stdin }))
  console.log(JSON.stringify(await measure(JSON.parse(line))));
process.exit(0);
