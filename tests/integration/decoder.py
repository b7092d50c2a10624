#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/decoder.py - the transformer against a float64 pass.

Small random models of every architecture, RoPE scaling and tensor type:
prefill, decoding and mixtures of them, each kind of cache; the same bits
however a text is cut, on any number of threads, with any batch mates; and the
files that must be refused, each by naming what is wrong."""
import os
import sys
import tempfile

import numpy as np

sys.path.insert(0, os.path.join(os.environ["MB_SOURCE_DIR"], "tests",
                                "support"))
import gguf_file  # noqa: E402
import make_model  # noqa: E402
from decoder_run import (Failed, distance, random_tokens, run,  # noqa: E402
                         same_bits)
from ref_decoder import Decoder, nll  # noqa: E402

# Largest difference of logits from float64, as part of their range. Weights
# that are floats meet activations that are floats: what is left is the
# rounding of sums. Quantised weights meet activations of 16 bits.
FLOAT_WEIGHTS = 2e-6
QUANTISED_WEIGHTS = 1e-4
# Where the head is the embedding all distances are two to three times those of a
# model with a head of its own, in floats as well: F32 1.7e-6, Q8_0 and Q4_K up
# to 1.1e-4. It is the model, not the type or the way of summing.
TIED = 3
# Keys and values of 11 bits, and of 8.
CACHE = {"f32": 0, "f16": 1e-3, "q8_0": 2e-2}

U32, F32 = gguf_file.U32, gguf_file.F32
STRING, ARRAY = gguf_file.STRING, gguf_file.ARRAY
ARCHS = ("llama", "qwen2", "qwen3")
SCALINGS = ("none", "linear", "yarn", "llama3")
N_TOKENS = 100  # two blocks of cache, the last partly filled

folder = tempfile.TemporaryDirectory(prefix="membank-decoder-test-")
model = os.path.join(folder.name, "model.gguf")
failures = []
n_checks = 0


def check(what, ok, figure=""):
    global n_checks
    n_checks += 1
    if not ok:
        failures.append(f"{what} {figure}".strip())
        print("FAILED:", failures[-1])


def shape_of(arch):
    """Heads that are wider than the model's share, in qwen3; sizes that no
    tile divides."""
    shape = dict(arch=arch, n_layers=2, d_model=256, n_heads=8, n_kv_heads=2,
                 d_ff=256, n_vocab=519, eps=1e-3)
    if arch == "qwen3":
        shape["head_dim"] = 48
    return shape


def check_close(name, tokens, reference, limit, **options):
    r = run(model, tokens, **options)
    d = distance(r.logits, reference)
    check(f"{name} {options}: distance", d <= limit, f"{d:.1e}")
    if options.get("scored", True):
        expected = nll(reference, tokens)
        # Both ends of a difference of logits may be off.
        off = 2 * limit * (reference.max() - reference.min())
        d = np.abs(r.nll - expected).max()
        check(f"{name} {options}: nll", d <= off + 1e-5, f"{d:.1e}")
        ratio = np.exp(r.nll.mean() - expected.mean())
        check(f"{name} {options}: perplexity", abs(ratio - 1) <= off + 1e-5,
              f"{ratio:.6f}")
    return r


def check_numbers(name, tokens, limit, caches=("f32",)):
    """Distance of all ways through the model."""
    reference = Decoder(model).logits(tokens)
    for cache in caches:
        most = limit + CACHE[cache]
        check_close(name, tokens, reference, most, cache=cache, chunk=1)
        check_close(name, tokens, reference, most, cache=cache, prefill=0)
    check_close(name, tokens, reference, limit, prefill=70, chunk=33,
                scored=False)
    return reference


def check_same_bits(name, tokens, cache="f32"):
    """Each kind of rows gives the same whatever goes on around it."""
    one = run(model, tokens, cache=cache, chunk=1)
    for options in (dict(), dict(chunk=7, mates=3, threads=3),
                    dict(chunk=64, threads=2), dict(chunk=100, mates=1)):
        r = run(model, tokens, cache=cache, **options)
        for part in ("logits", "hidden", "nll"):
            a, b = getattr(one, part), getattr(r, part)
            a, b = (a, b) if a.ndim == 2 else (a[:, None], b[:, None])
            check(f"{name} {cache} prefill {options}: bits of {part}",
                  same_bits(a, b))
    one = run(model, tokens, cache=cache, prefill=0)
    r = run(model, tokens, cache=cache, prefill=0, mates=5, threads=3)
    check(f"{name} {cache} decoding with mates: bits",
          same_bits(one.logits, r.logits) and same_bits(one.hidden, r.hidden))


# ---- numbers ----


def test_scalings():
    tokens = random_tokens(N_TOKENS, 519, 1)
    for arch in ARCHS:
        plain = None
        for scaling in SCALINGS:
            make_model.make(model, scaling=scaling, **shape_of(arch))
            reference = check_numbers(f"{arch} {scaling}", tokens,
                                      FLOAT_WEIGHTS)
            plain = reference if plain is None else plain
            # The case would show nothing if the scaling changed nothing.
            check(f"{arch} {scaling}: differs", scaling == "none" or
                  distance(plain, reference) > 1e-2)


# Name, value: rotation as other files describe it.
ROTATIONS = [
    ("factor without a type", {"rope.scaling.factor": 4.0}),
    ("old name of the factor", {"rope.scale_linear": 3.0}),
    ("magnitude", {"rope.scaling.attn_factor": 1.3}),
    ("half a head", {"rope.dimension_count": 16}),
    ("base", {"rope.freq_base": 500000.0}),
]


def test_rotations():
    tokens = random_tokens(N_TOKENS, 519, 1)
    for arch in ("llama", "qwen2"):
        keys, tensors, _ = make_model.build(
            make_model.Model(**shape_of(arch)))
        gguf_file.write(model, keys, tensors)
        plain = Decoder(model).logits(tokens)
        for name, values in ROTATIONS:
            changed = dict(keys)
            for key, v in values.items():
                kind = U32 if isinstance(v, int) else F32
                changed[f"{arch}.{key}"] = (kind, v)
            gguf_file.write(model, changed, tensors)
            reference = check_numbers(f"{arch} {name}", tokens, FLOAT_WEIGHTS)
            check(f"{arch} {name}: differs",
                  distance(plain, reference) > 1e-2)


def test_types():
    tokens = random_tokens(N_TOKENS, 519, 2)
    for i, kind in enumerate(gguf_file.TYPES):
        for arch in ARCHS:
            shape = shape_of(arch)
            if arch == "qwen3":  # heads in one matrix: a multiple of 256
                shape["head_dim"] = 64
            make_model.make(model, type=kind, tied=i % 2 == 0, **shape)
            is_float = gguf_file.TYPES[kind].block_values == 1
            limit = FLOAT_WEIGHTS if is_float else QUANTISED_WEIGHTS
            caches = CACHE if arch == "llama" else ("f32",)
            check_numbers(f"{arch} {kind}", tokens, limit, caches)


def test_tied_heads():
    """Several seeds: what is far off depends on the model."""
    tokens = random_tokens(60, 300, 8)
    for kind in ("F32", "Q8_0", "Q4_K"):
        limit = FLOAT_WEIGHTS if kind == "F32" else QUANTISED_WEIGHTS
        worst = 0
        for seed in (1, 2, 3, 8):
            make_model.make(model, type=kind, tied=True, n_layers=2,
                            d_model=256, n_heads=4, n_kv_heads=2, d_ff=512,
                            n_vocab=300, seed=seed)
            reference = Decoder(model).logits(tokens)
            worst = max(worst, distance(run(model, tokens, chunk=1).logits,
                                        reference))
        check(f"tied {kind}", worst <= TIED * limit, f"{worst:.1e}")
        print(f"tied {kind}: {worst:.1e} of the range")


def test_shapes():
    """Groups of 3, 1 and 16 heads, narrow heads, ties, one layer."""
    tokens = random_tokens(N_TOKENS, 300, 3)
    for shape in (
            dict(d_model=192, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=160,
                 n_vocab=300, type="Q8_0", tied=True),
            dict(d_model=64, n_heads=4, n_kv_heads=4, d_ff=96, n_vocab=301,
                 n_layers=1, vocabulary="gpt2"),
            dict(d_model=128, n_heads=16, n_kv_heads=1, d_ff=33, n_vocab=300),
            dict(arch="qwen2", d_model=96, n_heads=3, n_kv_heads=1, d_ff=64,
                 n_vocab=1000, type="F16", rope_base=1e6)):
        make_model.make(model, **shape)
        kind = shape.get("type", "F32")
        limit = QUANTISED_WEIGHTS if kind == "Q8_0" else FLOAT_WEIGHTS
        check_numbers(str(shape), tokens, limit)
        check_same_bits(str(shape), tokens)


def test_long():
    """Decoding past 512 rows, where one row's attention is cut in pieces."""
    tokens = random_tokens(700, 300, 4)
    make_model.make(model, n_layers=1, d_model=64, n_heads=4, n_kv_heads=2,
                    d_ff=64, n_vocab=300, n_ctx=1024)
    reference = Decoder(model).logits(tokens)
    check_close("long", tokens, reference, FLOAT_WEIGHTS)
    check_close("long", tokens, reference, FLOAT_WEIGHTS, prefill=0)
    one = run(model, tokens, prefill=500)
    many = run(model, tokens, prefill=500, threads=3, mates=2)
    check("long: bits", same_bits(one.logits, many.logits))


def test_same_bits():
    tokens = random_tokens(N_TOKENS, 519, 5)
    for kind in gguf_file.TYPES:
        make_model.make(model, type=kind, **shape_of("llama"))
        check_same_bits(kind, tokens, "f16" if kind == "Q8_0" else "f32")
    make_model.make(model, **shape_of("qwen3"))
    check_same_bits("qwen3", tokens, "q8_0")


def test_levels():
    tokens = random_tokens(N_TOKENS, 519, 6)
    for kind in ("F32", "Q8_0", "Q4_K", "Q6_K"):
        make_model.make(model, type=kind, **shape_of("llama"))
        reference = Decoder(model).logits(tokens)
        limit = FLOAT_WEIGHTS if kind == "F32" else QUANTISED_WEIGHTS
        for level in ("plain", "avx2", "avx512"):
            for prefill in (0, N_TOKENS):
                r = run(model, tokens, level=level, prefill=prefill)
                d = distance(r.logits, reference) if r else 0
                check(f"{kind} {level} {prefill}", d <= limit, f"{d:.1e}")


# ---- refusals ----


def with_key(name, value):
    return lambda keys, tensors: keys.update({name: value})


def without(name):
    def change(keys, tensors):
        (keys if name in keys else tensors).pop(name)
    return change


def with_one_wide_head(keys, tensors):
    """The width of a head is not said and follows from others."""
    keys.update({"llama.embedding_length": (U32, 1024),
                 "llama.attention.head_count": (U32, 1),
                 "llama.attention.head_count_kv": (U32, 1),
                 "llama.rope.dimension_count": (U32, 64)})
    keys.pop("llama.attention.key_length", None)
    keys.pop("llama.attention.value_length", None)


def with_tensor(name, values, kind="F32"):
    def change(keys, tensors):
        tensors[name] = gguf_file.encode(np.asarray(values), kind)
    return change


def with_type(name, number, size):
    """The bytes do not matter: the type is refused before."""
    def change(keys, tensors):
        shape = tensors[name].shape
        tensors[name] = gguf_file.Tensor(number, shape, bytes(size))
    return change


NEW, GONE, BAD = "not_implemented", "not_found", "corrupt"
D, FF, HEADS = 64, 256, 4

# name, status, words of the message, change to a good file
REFUSALS = [
    ("architecture", NEW, ["gemma2"],
     with_key("general.architecture", (STRING, "gemma2"))),
    ("no architecture", GONE, ["general.architecture"],
     without("general.architecture")),
    ("type Q5_K", NEW, ["blk.1.ffn_down.weight", "Q5_K"],
     with_type("blk.1.ffn_down.weight", 13, FF * D // 256 * 176)),
    ("type without a name", NEW, ["blk.0.attn_q.weight", "99"],
     with_type("blk.0.attn_q.weight", 99, 0)),
    ("norm in F16", NEW, ["blk.0.attn_norm.weight", "F16"],
     with_tensor("blk.0.attn_norm.weight", np.ones(D), "F16")),
    ("head too wide by default", BAD, ["llama.attention.key_length", "1024"],
     with_one_wide_head),
    ("missing matrix", GONE, ["blk.1.attn_k.weight"],
     without("blk.1.attn_k.weight")),
    ("missing norm", GONE, ["output_norm.weight"],
     without("output_norm.weight")),
    ("missing embedding", GONE, ["token_embd.weight"],
     without("token_embd.weight")),
    ("missing key", GONE, ["llama.feed_forward_length"],
     without("llama.feed_forward_length")),
    ("missing eps", GONE, ["layer_norm_rms_epsilon"],
     without("llama.attention.layer_norm_rms_epsilon")),
    ("matrix turned round", BAD, ["blk.0.ffn_up.weight", "256 x 64", "64 x 256"],
     with_tensor("blk.0.ffn_up.weight", np.ones((D, FF)))),
    ("matrix of three axes", BAD, ["blk.0.ffn_up.weight"],
     with_tensor("blk.0.ffn_up.weight", np.ones((2, FF, D)))),
    ("output of another vocabulary", BAD, ["output.weight"],
     with_tensor("output.weight", np.ones((299, D)))),
    ("norm too short", BAD, ["blk.1.ffn_norm.weight"],
     with_tensor("blk.1.ffn_norm.weight", np.ones(D - 1))),
    ("bias too long", BAD, ["blk.1.attn_q.bias"],
     with_tensor("blk.1.attn_q.bias", np.ones(D + 1))),
    ("tensor of another kind", NEW, ["blk.0.attn_sinks.weight"],
     with_tensor("blk.0.attn_sinks.weight", np.ones(HEADS))),
    ("tensor of a layer too many", NEW, ["blk.2.attn_norm.weight"],
     with_tensor("blk.2.attn_norm.weight", np.ones(D))),
    ("norms of queries", NEW, ["norms of queries", "llama"],
     with_tensor("blk.0.attn_q_norm.weight", np.ones(D // HEADS))),
    ("experts", NEW, ["experts", "8"],
     with_key("llama.expert_count", (U32, 8))),
    ("heads that do not divide", BAD, ["4 heads", "3 key-value"],
     with_key("llama.attention.head_count_kv", (U32, 3))),
    ("heads by layer", NEW, ["llama.attention.head_count_kv"],
     with_key("llama.attention.head_count_kv", (ARRAY, (U32, [2, 2])))),
    ("keys wider than values", NEW, ["keys of 16", "values of 8"],
     with_key("llama.attention.value_length", (U32, 8))),
    ("no layers", BAD, ["llama.block_count", "0"],
     with_key("llama.block_count", (U32, 0))),
    ("too many layers", BAD, ["llama.block_count"],
     with_key("llama.block_count", (U32, 1 << 31))),
    ("a layer too many", GONE, ["blk.2.attn_norm.weight"],
     with_key("llama.block_count", (U32, 3))),
    ("scaling", NEW, ["longrope"],
     with_key("llama.rope.scaling.type", (STRING, "longrope"))),
    ("factor below zero", BAD, ["llama.rope.scaling.factor", "-2"],
     with_key("llama.rope.scaling.factor", (F32, -2.0))),
    ("odd rotation", BAD, ["rope", "15"],
     with_key("llama.rope.dimension_count", (U32, 15))),
    ("rotation wider than a head", BAD, ["rope", "32"],
     with_key("llama.rope.dimension_count", (U32, 32))),
    ("frequencies too few", BAD, ["rope_freqs.weight", "7"],
     with_tensor("rope_freqs.weight", np.ones(7))),
    ("frequency of zero", BAD, ["rope_freqs.weight", "0"],
     with_tensor("rope_freqs.weight", np.zeros(8))),
    ("eps of NaN", BAD, ["layer_norm_rms_epsilon"],
     with_key("llama.attention.layer_norm_rms_epsilon",
              (F32, float("nan")))),
]


def test_refusals():
    tokens = random_tokens(3, 300, 7)
    keys, tensors, _ = make_model.build(make_model.Model(
        d_model=D, n_heads=HEADS, n_kv_heads=2, d_ff=FF, n_vocab=300))
    gguf_file.write(model, keys, tensors)
    run(model, tokens)
    for name, status, words, change in REFUSALS:
        changed_keys, changed_tensors = dict(keys), dict(tensors)
        change(changed_keys, changed_tensors)
        gguf_file.write(model, changed_keys, changed_tensors)
        try:
            run(model, tokens)
            check(f"{name}: is read", False)
        except Failed as e:
            check(f"{name}: says", str(e).startswith(status + ": ") and
                  all(word in str(e) for word in words), str(e))


def test_bad_tokens():
    make_model.make(model, d_model=D, n_heads=HEADS, n_vocab=300, d_ff=FF)
    for tokens in ([1, 300], [-1]):
        try:
            run(model, tokens)
            check(f"tokens {tokens}: are read", False)
        except Failed as e:
            check(f"tokens {tokens}", str(e).startswith("bad_arg: ") and
                  str(tokens[-1]) in str(e) and "300" in str(e), str(e))


with folder:
    for test in (test_scalings, test_rotations, test_types, test_tied_heads,
                 test_shapes, test_long, test_same_bits, test_levels, test_refusals,
                 test_bad_tokens):
        test()
print(f"decoder: {n_checks} checks, {len(failures)} failed")
sys.exit(1 if failures else 0)
