#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/support/make_model.py - small random models, and models of other types.

    make_model.py random OUT.gguf [--arch llama] [--type Q8_0] [--shape 135m] ...
    make_model.py convert IN.gguf OUT.gguf --type F32

Random models have the tensors and keys that llama.cpp wants, weights of the
size of a trained model's, and a vocabulary that tokenizers load. Same seed,
same file. A matrix whose columns do not divide into blocks of 256 cannot be
Q4_K or Q6_K: it is written as llama-quantize does, in a Q4_K file as Q5_0, or
as Q8_0 if it gives the logits, in a Q6_K file as Q8_0; and that is said."""
import argparse
import math
import sys
from dataclasses import dataclass, fields

import numpy as np

import gguf_file
from gguf_file import ARRAY, BOOL, F32, I32, STRING, U32

LETTERS = "etaoinshrdlucmfwypvbgkjqxz"

# What a file of ours may be asked to be.
SHAPES = {
    "small": dict(n_layers=2, d_model=256, n_heads=8, n_kv_heads=2, d_ff=512,
                  n_vocab=512, n_ctx=512),
    "anchor": dict(n_layers=8, d_model=256, n_heads=8, n_kv_heads=4, d_ff=704,
                   n_vocab=8192, n_ctx=2560),
    "135m": dict(n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, d_ff=1536,
                 n_vocab=49152, n_ctx=8192),
}


@dataclass
class Model:
    arch: str = "llama"
    type: str = "F32"
    n_layers: int = 2
    d_model: int = 256
    n_heads: int = 8
    n_kv_heads: int = 2
    head_dim: int = 0  # 0: d_model / n_heads
    d_ff: int = 512
    n_vocab: int = 512
    n_ctx: int = 512
    tied: bool = False
    vocabulary: str = "spm"
    scaling: str = "none"  # none, linear, yarn, llama3
    factor: float = 4.0
    original_context: int = 1024
    rope_base: float = 10000.0
    eps: float = 1e-5
    seed: int = 1


# ---- vocabularies ----


def random_words(rng, n):
    """n distinct words of 2 to 7 letters, frequent letters first."""
    words = {}
    while len(words) < n:
        sizes = rng.integers(2, 8, n)
        letters = np.minimum(25, rng.exponential(6, (n, 7)).astype(int))
        for size, row in zip(sizes, letters):
            words["".join(LETTERS[i] for i in row[:size])] = None
            if len(words) == n:
                break
    return list(words)


def spm_vocabulary(n, rng):
    """<unk> <s> </s>, 256 bytes, letters, then words; scores fall."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    types = [2, 3, 3] + [6] * 256
    pieces = ["\u2581"] + list(LETTERS) + ["\u2581" + c for c in LETTERS]
    pieces += list(".,;:!?'\"-()0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    words = random_words(rng, max(0, n - len(tokens) - len(pieces)))
    pieces += [("\u2581" if i % 2 == 0 else "") + word
               for i, word in enumerate(words)]
    pieces = pieces[:n - len(tokens)]
    scores = [0.0] * len(tokens) + [-float(i) for i in range(len(pieces))]
    return {
        "tokenizer.ggml.model": (STRING, "llama"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens + pieces)),
        "tokenizer.ggml.scores": (ARRAY, (F32, scores)),
        "tokenizer.ggml.token_type":
            (ARRAY, (I32, types + [1] * len(pieces))),
        "tokenizer.ggml.bos_token_id": (U32, 1),
        "tokenizer.ggml.eos_token_id": (U32, 2),
        "tokenizer.ggml.unknown_token_id": (U32, 0),
        "tokenizer.ggml.add_bos_token": (BOOL, True),
        "tokenizer.ggml.add_eos_token": (BOOL, False),
        "tokenizer.ggml.add_space_prefix": (BOOL, True),
    }


def byte_characters():
    """The character that stands for each byte in byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    table = {b: chr(b) for b in plain}
    table.update({b: chr(256 + i) for i, b in enumerate(others)})
    return [table[b] for b in range(256)]


def gpt2_vocabulary(n, rng):
    """256 bytes, then words that grow letter by letter, each by one merge."""
    tokens = byte_characters()
    space = tokens[ord(" ")]
    known = set(tokens)
    merges = []
    for word in random_words(rng, n):
        word = space + word if len(merges) % 2 == 0 else word
        for end in range(2, len(word) + 1):
            if word[:end] not in known and len(tokens) < n - 2:
                known.add(word[:end])
                tokens.append(word[:end])
                merges.append(f"{word[:end - 1]} {word[end - 1]}")
    types = [1] * len(tokens) + [3, 3]
    tokens += ["<|begin|>", "<|end|>"]
    return {
        "tokenizer.ggml.model": (STRING, "gpt2"),
        "tokenizer.ggml.pre": (STRING, "gpt-2"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.token_type": (ARRAY, (I32, types)),
        "tokenizer.ggml.merges": (ARRAY, (STRING, merges)),
        "tokenizer.ggml.bos_token_id": (U32, len(tokens) - 2),
        "tokenizer.ggml.eos_token_id": (U32, len(tokens) - 1),
        "tokenizer.ggml.add_bos_token": (BOOL, False),
    }


# ---- keys ----


def model_keys(m, rng):
    head_dim = m.head_dim or m.d_model // m.n_heads
    own = {
        "context_length": (U32, m.n_ctx),
        "embedding_length": (U32, m.d_model),
        "block_count": (U32, m.n_layers),
        "feed_forward_length": (U32, m.d_ff),
        "attention.head_count": (U32, m.n_heads),
        "attention.head_count_kv": (U32, m.n_kv_heads),
        "attention.layer_norm_rms_epsilon": (F32, m.eps),
        "rope.dimension_count": (U32, head_dim),
        "rope.freq_base": (F32, m.rope_base),
        "vocab_size": (U32, m.n_vocab),
    }
    if m.head_dim:
        own["attention.key_length"] = (U32, head_dim)
        own["attention.value_length"] = (U32, head_dim)
    if m.scaling in ("linear", "yarn"):
        own["rope.scaling.type"] = (STRING, m.scaling)
        own["rope.scaling.factor"] = (F32, m.factor)
    if m.scaling == "yarn":
        own["rope.scaling.original_context_length"] = (U32, m.original_context)
    keys = {
        "general.architecture": (STRING, m.arch),
        "general.name": (STRING, f"random {m.arch} {m.type}"),
    }
    keys.update({f"{m.arch}.{name}": value for name, value in own.items()})
    make = spm_vocabulary if m.vocabulary == "spm" else gpt2_vocabulary
    keys.update(make(m.n_vocab, rng))
    return keys


def llama3_factors(m, head_dim):
    """Divisors of the frequencies as Llama 3.1 has them: slow pairs by the
    whole factor, fast ones by 1, a ramp between."""
    slow, fast = 1.0, 4.0
    factors = []
    for i in range(head_dim // 2):
        wavelength = 2 * math.pi * m.rope_base ** (2 * i / head_dim)
        turns = m.original_context / wavelength
        part = min(1.0, max(0.0, (turns - slow) / (fast - slow)))
        factors.append(1 / ((1 - part) / m.factor + part))
    return np.array(factors, np.float32)


# ---- weights ----


class Weights:
    """Tensors in the order of a file, all from one generator."""

    def __init__(self, model, rng):
        self.model = model
        self.rng = rng
        self.tensors = {}
        self.fell_back = []

    def matrix(self, name, rows, cols, std):
        kind = self.model.type
        if cols % gguf_file.TYPES[kind].block_values != 0:
            is_output = name == "output.weight" or (
                self.model.tied and name == "token_embd.weight")
            kind = "Q5_0" if kind == "Q4_K" and not is_output else "Q8_0"
            self.fell_back.append(f"{name} {kind}")
        x = self.rng.standard_normal((rows, cols), np.float32)
        x *= np.float32(std)
        self.tensors[name] = gguf_file.encode(x, kind)

    def vector(self, name, n, mean, std):
        x = mean + std * self.rng.standard_normal(n)
        self.tensors[name] = gguf_file.encode(x, "F32")

    def norm(self, name, n):
        self.vector(name, n, 1, 0.1)


def layer_weights(w, m, i):
    head_dim = m.head_dim or m.d_model // m.n_heads
    q_width, kv_width = m.n_heads * head_dim, m.n_kv_heads * head_dim
    one = m.d_model ** -0.5  # keeps the size of a row
    widths = {"q": q_width, "k": kv_width, "v": kv_width}
    block = f"blk.{i}."
    w.norm(block + "attn_norm.weight", m.d_model)
    for part, width in widths.items():
        std = one if part == "v" else 1.5 * one
        w.matrix(f"{block}attn_{part}.weight", width, m.d_model, std)
        if m.arch == "qwen2":
            w.vector(f"{block}attn_{part}.bias", width, 0, 0.3)
    if m.arch == "qwen3":
        w.norm(block + "attn_q_norm.weight", head_dim)
        w.norm(block + "attn_k_norm.weight", head_dim)
    w.matrix(block + "attn_output.weight", m.d_model, q_width, one)
    w.norm(block + "ffn_norm.weight", m.d_model)
    w.matrix(block + "ffn_gate.weight", m.d_ff, m.d_model, one)
    w.matrix(block + "ffn_up.weight", m.d_ff, m.d_model, one)
    w.matrix(block + "ffn_down.weight", m.d_model, m.d_ff, m.d_ff ** -0.5)


def build(m):
    """Keys, tensors, and the matrices of other types, as "name type"."""
    rng = np.random.default_rng(m.seed)
    keys = model_keys(m, rng)
    w = Weights(m, rng)
    head_dim = m.head_dim or m.d_model // m.n_heads
    # A tied matrix gives the logits too: its rows must not be long.
    std = 2 * m.d_model ** -0.5 if m.tied else 1.0
    w.matrix("token_embd.weight", m.n_vocab, m.d_model, std)
    if m.scaling == "llama3":
        w.tensors["rope_freqs.weight"] = gguf_file.encode(
            llama3_factors(m, head_dim), "F32")
    for i in range(m.n_layers):
        layer_weights(w, m, i)
    w.norm("output_norm.weight", m.d_model)
    if not m.tied:
        w.matrix("output.weight", m.n_vocab, m.d_model, 2 * m.d_model ** -0.5)
    return keys, w.tensors, w.fell_back


def make(path, **options):
    """Write a random model; returns the matrices, as "name type", whose
    columns are no multiple of 256 where the type asks for that."""
    keys, tensors, fell_back = build(Model(**options))
    gguf_file.write(path, keys, tensors)
    return fell_back


def convert(source, target, type_name):
    """The same model with its matrices in another type, where they fit."""
    keys, tensors = gguf_file.read(source)
    block = gguf_file.TYPES[type_name].block_values
    for name, t in tensors.items():
        if len(t.shape) == 2 and t.shape[-1] % block == 0:
            tensors[name] = gguf_file.encode(t.values(), type_name)
    gguf_file.write(target, keys, tensors)


# ---- the command ----


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sub = parser.add_subparsers(dest="command", required=True)
    c = sub.add_parser("convert")
    c.add_argument("source")
    c.add_argument("target")
    c.add_argument("--type", choices=gguf_file.TYPES, required=True)
    r = sub.add_parser("random")
    r.add_argument("target")
    r.add_argument("--shape", choices=SHAPES, default="small")
    for f in fields(Model):
        flag = "--" + f.name.replace("_", "-")
        if f.name == "tied":
            r.add_argument(flag, action="store_true", default=None)
        else:
            r.add_argument(flag, type=f.type)
    args = parser.parse_args()
    if args.command == "convert":
        convert(args.source, args.target, args.type)
        return 0
    options = dict(SHAPES[args.shape])
    options.update({f.name: getattr(args, f.name) for f in fields(Model)
                    if getattr(args, f.name) is not None})
    fell_back = make(args.target, **options)
    if fell_back:
        print(f"{args.target}: {len(fell_back)} matrices are of other types, "
              f"as their columns are no multiple of 256: {fell_back[0]}, ...")
    return 0


if __name__ == "__main__":
    sys.exit(main())
