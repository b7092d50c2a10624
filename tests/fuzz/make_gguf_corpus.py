#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the small files of tests/fuzz/corpus/gguf that fuzzing starts from.

Usage: make_gguf_corpus.py FOLDER. Same files every time."""
import os
import struct
import sys

U8, U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 4, 5, 6, 7, 8, 9, 10, 12
PACK = {U8: "<B", U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q",
        F64: "<d"}


def string(s):
    s = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(s)) + s


def value(kind, v):
    if kind == STRING:
        return string(v)
    if kind == ARRAY:
        element, items = v
        head = struct.pack("<IQ", element, len(items))
        return head + b"".join(value(element, i) for i in items)
    return struct.pack(PACK[kind], v)


def gguf(keys, tensors=(), version=3):
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for name, kind, v in keys:
        head += string(name) + struct.pack("<I", kind) + value(kind, v)
    data = b""
    for name, kind, dims, content in tensors:
        data += b"\0" * (-len(data) % 32)
        head += string(name) + struct.pack("<I", len(dims))
        head += b"".join(struct.pack("<Q", d) for d in dims)
        head += struct.pack("<IQ", kind, len(data))
        data += content
    if tensors:
        head += b"\0" * (-len(head) % 32)
    return head + data


def vocabulary(pieces, prefix=True):
    tokens = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(256)]
    types = [2, 3, 3] + [6] * 256
    scores = [0.0] * 259
    for text, score, kind in pieces:
        tokens.append(text)
        scores.append(score)
        types.append(kind)
    return [("tokenizer.ggml.model", STRING, "llama"),
            ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
            ("tokenizer.ggml.scores", ARRAY, (F32, scores)),
            ("tokenizer.ggml.token_type", ARRAY, (I32, types)),
            ("tokenizer.ggml.bos_token_id", U32, 1),
            ("tokenizer.ggml.add_space_prefix", BOOL, int(prefix))]


def byte_chars():
    """The characters that GPT-2 writes the 256 bytes as."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b if b in shown else 256 + hidden.index(b))
            for b in range(256)]


def bpe(pre, merges, pieces=(), bytes_from=0, more=()):
    tokens = byte_chars()[bytes_from:]
    tokens += [m.replace(" ", "") for m in merges]
    types = [1] * len(tokens)
    for text, kind in pieces:
        tokens.append(text)
        types.append(kind)
    return [("tokenizer.ggml.model", STRING, "gpt2"),
            ("tokenizer.ggml.pre", STRING, pre),
            ("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
            ("tokenizer.ggml.token_type", ARRAY, (I32, types)),
            ("tokenizer.ggml.merges", ARRAY, (STRING, merges)),
            ("tokenizer.ggml.eos_token_id", U32, len(tokens) - 1), *more]


MERGES = ["a b", "ab ab", "\u0120 a", "\u0120a bab", "n e", "l ine", "i ne",
          "\u010a \u010a", "\u0120 \u0120"]
CHATS = {
    "chatml": "{{ '<|im_start|>' + m.role }}<|im_end|>",
    "qwen3": "<|im_start|><|im_end|>last_query_index enable_thinking is false",
    "zephyr": "<|user|><|assistant|>eos_token",
    "llama3": "bos_token<|start_header_id|><|eot_id|>",
}
SPACE = "\u2581"
FILES = {
    "empty": b"",
    "header": gguf([]),
    "version-2": gguf([], version=2),
    "keys": gguf([("s", STRING, "text"), ("u", U8, 3), ("d", F64, 0.5),
                  ("b", BOOL, 1), ("n", ARRAY, (U64, [1, 2])),
                  ("a", ARRAY, (ARRAY, [(U8, [1, 2]), (STRING, ["x"])])),
                  ("general.alignment", U32, 32)]),
    "tensors": gguf([("k", U32, 1)],
                    [("q", 8, [32, 2], b"\1" * 68), ("f", 0, [3], b"\2" * 12),
                     ("odd", 99, [1], b"")]),
    "vocab": gguf(vocabulary([(SPACE, -9, 1), ("a", -8, 1), ("b", -8, 1),
                              ("ab", -1, 1), (SPACE + "a", -2, 1),
                              ("e" + SPACE + "w", -3, 1), ("ne", -4, 1)])),
    "vocab-user": gguf(vocabulary([(SPACE, -9, 1), ("a", -8, 1),
                                   ("<s>", 0, 4), ("ab ab", 0, 4)], False)),
    "gpt2": gguf([("tokenizer.ggml.model", STRING, "gpt2")]),
    # Merges without sides, with too many, of no bytes, twice; strings that are
    # no token; tokens that are empty, or there twice.
    "bpe-odd": gguf(bpe("default", [
        "", " ", "ab", " a", "a ", "a b c", "a b", "a b", "\u4e16 a", "q w",
        "\u0120 \u0120 \u0120"], [("", 1), ("", 4), ("a", 1), ("a", 4),
                                  ("\u4e16", 1), ("<0x41>", 6), ("a", 3)])),
    "bpe-no-bytes": gguf(bpe("gpt-2", MERGES, bytes_from=100)),
    "bpe-one-token": gguf([
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, [""])),
        ("tokenizer.ggml.token_type", ARRAY, (I32, [4])),
        ("tokenizer.ggml.merges", ARRAY, (STRING, []))]),
    # Pieces that overlap in the line that the target encodes.
    "bpe-user": gguf(bpe("smollm", MERGES, [
        ("A line", 4), ("line, wi", 4), (", with ", 4), ("a", 4), ("aba", 4),
        (" ", 4), ("  ", 4), ("\n", 4), ("<s>", 3), ("</s>", 4)])),
    # A count that no file can hold.
    "tokens-huge": gguf([("tokenizer.ggml.model", STRING, "gpt2")])
    + string("tokenizer.ggml.tokens")
    + struct.pack("<IIQ", ARRAY, STRING, 1 << 60),
}
for rule in ("gpt-2", "llama-bpe", "qwen2", "falcon", "starcoder",
             "deepseek-coder", "deepseek-llm"):
    FILES["bpe-" + rule] = gguf(bpe(rule, MERGES))
for family, template in CHATS.items():
    FILES["chat-" + family] = gguf(bpe(
        "gpt-2", MERGES, [("<|im_end|>", 3)],
        more=[("tokenizer.chat_template", STRING, template)]))

for name, content in FILES.items():
    with open(os.path.join(sys.argv[1], name + ".gguf"), "wb") as f:
        f.write(content)
