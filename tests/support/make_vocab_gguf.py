#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the vocabulary of a tokenizer.json as a GGUF file without tensors.

Usage: make_vocab_gguf.py TOKENIZER.json PRE OUT.gguf [BOS [EOS]]

PRE is the pre-tokenizer's name (qwen2, llama-bpe, smollm, ...), BOS and EOS
are texts of tokens. For byte-level BPE alone. Two published vocabularies whose
test vectors we have, llama-bpe and qwen2, come as such files only."""
import json
import struct
import sys

U32, I32, STRING, ARRAY = 4, 5, 8, 9


def string(s):
    s = s.encode()
    return struct.pack("<Q", len(s)) + s


def key(name, kind, value):
    return string(name) + struct.pack("<I", kind) + value


def array(kind, items):
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


source = json.load(open(sys.argv[1], encoding="utf-8"))
vocab = source["model"]["vocab"]
added = {t["id"]: t for t in source["added_tokens"]}
size = max(max(vocab.values()), max(added)) + 1
tokens = [f"[PAD{i}]" for i in range(size)]
types = [4] * size
for text, i in vocab.items():
    tokens[i] = text
    types[i] = 1
for i, token in added.items():
    tokens[i] = token["content"]
    types[i] = 3 if token["special"] else 4
merges = [m if isinstance(m, str) else " ".join(m)
          for m in source["model"]["merges"]]
keys = [
    key("general.architecture", STRING, string("llama")),
    key("tokenizer.ggml.model", STRING, string("gpt2")),
    key("tokenizer.ggml.pre", STRING, string(sys.argv[2])),
    key("tokenizer.ggml.tokens", ARRAY,
        array(STRING, [string(t) for t in tokens])),
    key("tokenizer.ggml.token_type", ARRAY,
        array(I32, [struct.pack("<i", t) for t in types])),
    key("tokenizer.ggml.merges", ARRAY,
        array(STRING, [string(m) for m in merges])),
]
for name, text in zip(("bos", "eos"), sys.argv[4:6]):
    keys.append(key(f"tokenizer.ggml.{name}_token_id", U32,
                    struct.pack("<I", tokens.index(text))))
with open(sys.argv[3], "wb") as out:
    out.write(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + b"".join(keys))
