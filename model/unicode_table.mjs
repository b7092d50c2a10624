// SPDX-License-Identifier: Apache-2.0
// model/unicode_table.mjs - writes unicode_table.h from Unicode 15.1.0.
//
// Usage, in a folder with `npm install @unicode/unicode-15.1.0`:
//     node PATH/model/unicode_table.mjs > PATH/model/unicode_table.h
// Each entry is the first code point of a run and the class of the whole run,
// as unicode.h numbers them. White space is Unicode's White_Space property.
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const folder = path.resolve('node_modules/@unicode/unicode-15.1.0');
const names = ['General_Category/Letter', 'General_Category/Number',
  'General_Category/Punctuation', 'General_Category/Symbol',
  'General_Category/Mark', 'Binary_Property/White_Space'];
const table = new Uint8Array(0x110000);
for (const [i, name] of names.entries()) {
  const url = pathToFileURL(path.join(folder, name, 'code-points.mjs'));
  for (const c of (await import(url)).default)
    table[c] = i + 1;
}

const runs = [];
for (let c = 0; c < table.length; c++)
  if (c === 0 || table[c] !== table[c - 1])
    runs.push(c * 8 + table[c]);

const lines = [];
for (let i = 0; i < runs.length; i += 7)
  lines.push('    ' + runs.slice(i, i + 7).map((r) => `${r},`).join(' '));
console.log(`/* SPDX-License-Identifier: Apache-2.0
 * model/unicode_table.h - classes of all code points, Unicode 15.1.0.
 *
 * Made by unicode_table.mjs from the Unicode Character Database; not edited by
 * hand. An entry is first code point * 8 + class; it holds up to the next. */
#ifndef MB_MODEL_UNICODE_TABLE_H
#define MB_MODEL_UNICODE_TABLE_H

#include <stdint.h>

/* clang-format off */
static const uint32_t unicode_runs[${runs.length}] = {
${lines.join('\n')}
};
/* clang-format on */

#endif`);
