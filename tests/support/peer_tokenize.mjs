// SPDX-License-Identifier: Apache-2.0
// tests/support/peer_tokenize.mjs - what llama.cpp makes of some texts.
//
// Usage: node peer_tokenize.mjs FOLDER VOCABULARY.gguf TEXTS OUT [special]
// FOLDER has node_modules with node-llama-cpp and its prebuilt library. TEXTS
// is a row of texts, OUT of their token ids: each a count (u32, of bytes or of
// ids) and then these; ids are u32. With "special" names of control tokens are
// the tokens. Prints seconds taken and the version of the library.
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, vocabulary, texts, out, special] = process.argv.slice(2);
const peer = path.join(folder, 'node_modules/node-llama-cpp');
const { getLlama, LlamaLogLevel } =
  await import(pathToFileURL(path.join(peer, 'dist/index.js')));
const llama = await getLlama({
  gpu: false, build: 'never', skipDownload: true, progressLogs: false,
  logLevel: LlamaLogLevel.error,
});
const model = await llama.loadModel({
  modelPath: path.resolve(vocabulary), vocabOnly: true,
});
const input = fs.readFileSync(texts);
const lists = [];
const start = performance.now();
for (let at = 0; at < input.length;) {
  const size = input.readUInt32LE(at);
  const text = input.toString('utf8', at + 4, at + 4 + size);
  at += 4 + size;
  const ids = model.tokenize(text, special === 'special');
  lists.push(Uint32Array.of(ids.length), Uint32Array.from(ids));
}
const seconds = (performance.now() - start) / 1000;
fs.writeFileSync(out, Buffer.concat(lists.map(
  (l) => Buffer.from(l.buffer, l.byteOffset, l.byteLength))));
const version = JSON.parse(
  fs.readFileSync(path.join(peer, 'llama/llama.cpp.info.json'))).tag;
console.log(`${seconds.toFixed(1)} s, llama.cpp ${version}`);
process.exit(0);
