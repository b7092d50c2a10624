#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/quality/decoder_peer.py - the same numbers as llama.cpp, or closer.

ctest: label=peer;slow timeout=900

For random models of every architecture, scaling and type, and for the bundled
model: how far are we, and how far is llama.cpp, from a float64 pass over the
stored weights? In F32 greedy continuations must agree, and perplexity of real
text in all types. Environment:
  MB_PEER_LLAMA  a folder where `npm install node-llama-cpp` was done
  MB_SHARED      has data/dev, for perplexity (optional)"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

source = os.environ["MB_SOURCE_DIR"]
sys.path.insert(0, os.path.join(source, "tests", "support"))
import gguf_file  # noqa: E402
import make_model  # noqa: E402
from decoder_run import distance, random_tokens, run, score  # noqa: E402
from ref_decoder import Decoder  # noqa: E402

FLOAT_LIMIT = 1e-4       # of the range of logits
PERPLEXITY_LIMIT = 5e-3  # of the perplexity
N_TOKENS = 100
N_GREEDY = 200
WINDOW = 512
TEXT_BYTES = 12000  # of each text for perplexity; llama.cpp gives logits slowly

peer_folder = os.environ.get("MB_PEER_LLAMA")
shared = os.environ.get("MB_SHARED")
anchor = os.path.join(source, "model", "weights", "anchor.gguf")
if not peer_folder:
    print("MB_PEER_LLAMA is not set: no llama.cpp to compare with")
    sys.exit(77)

work = tempfile.TemporaryDirectory(prefix="membank-peer-test-")
failures = []


def check(what, ok):
    if not ok:
        failures.append(what)
        print("FAILED:", what)


def path(name):
    return os.path.join(work.name, name)


def ask_peer(jobs):
    """Its results, in the order of the jobs."""
    with open(path("jobs.json"), "w", encoding="utf-8") as f:
        json.dump(jobs, f)
    script = os.path.join(source, "tests", "support", "peer_logits.mjs")
    p = subprocess.run(["node", script, peer_folder, path("jobs.json")],
                       capture_output=True, text=True, timeout=800,
                       check=False)
    if p.returncode != 0:
        sys.exit(f"llama.cpp failed: {p.stdout} {p.stderr}")
    *results, version = json.loads(p.stdout.splitlines()[-1])
    return results, version


# ---- cases ----


def with_keys(arch, extra, drop=()):
    """Further keys of rotation, as converters write them."""
    def change(keys):
        for name in drop:
            del keys[f"{arch}.{name}"]
        keys.update({f"{arch}.{name}": value for name, value in extra.items()})
    return change


F32, U32 = gguf_file.F32, gguf_file.U32
SMALL = dict(n_layers=2, d_model=256, n_heads=8, n_kv_heads=2, d_ff=512,
             n_vocab=519)


def shape_of(arch):
    return dict(SMALL, arch=arch, head_dim=64 if arch == "qwen3" else 0)


def random_cases():
    """Name, options of the model, change of its keys or None."""
    for arch in ("llama", "qwen2", "qwen3"):
        for scaling in ("none", "linear", "yarn", "llama3"):
            if scaling == "llama3" and arch != "llama":
                continue  # llama.cpp refuses such files
            yield (f"{arch} F32 {scaling}",
                   dict(shape_of(arch), scaling=scaling), None)
        for kind in gguf_file.TYPES:
            if kind != "F32":
                yield f"{arch} {kind}", dict(shape_of(arch), type=kind), None
    # As smaller models are quantised: no matrix but `down` divides.
    yield ("llama Q4_K, width 320",
           dict(SMALL, d_model=320, type="Q4_K", tied=True), None)
    yield ("llama F32 yarn, magnitude", dict(SMALL, scaling="yarn"),
           with_keys("llama", {"rope.scaling.attn_factor": (F32, 1.3)}))
    yield ("llama F32 yarn, ramp", dict(SMALL, scaling="yarn"),
           with_keys("llama", {"rope.scaling.yarn_beta_fast": (F32, 16.0),
                               "rope.scaling.yarn_beta_slow": (F32, 2.0)}))
    yield ("llama F32 yarn, no context",
           dict(SMALL, scaling="yarn", n_ctx=2048),
           with_keys("llama", {}, ["rope.scaling.original_context_length"]))
    yield ("llama F32 factor alone", dict(SMALL, scaling="linear"),
           with_keys("llama", {}, ["rope.scaling.type"]))
    yield ("llama F32 old linear", SMALL,
           with_keys("llama", {"rope.scale_linear": (F32, 3.0)}))
    yield ("llama F32 linear, magnitude", dict(SMALL, scaling="linear"),
           with_keys("llama", {"rope.scaling.attn_factor": (F32, 1.3)}))


def write_cases():
    tokens = random_tokens(N_TOKENS, SMALL["n_vocab"], 1)
    for i, (name, options, change) in enumerate(random_cases()):
        keys, tensors, _ = make_model.build(make_model.Model(**options))
        if change:
            change(keys)
        gguf_file.write(path(f"{i}.gguf"), keys, tensors)
        yield name, path(f"{i}.gguf"), tokens
    keys, _ = gguf_file.read(anchor)
    n_vocab = len(keys["tokenizer.ggml.tokens"][1][1])
    tokens = random_tokens(N_TOKENS, n_vocab, 2)
    if shared:
        tokens = score(anchor, read_text("books-dev.jsonl")[:2000],
                       WINDOW)[0][:N_TOKENS]
    yield "anchor Q8_0", anchor, tokens
    for kind in ("F32", "F16"):
        make_model.convert(anchor, path(f"anchor-{kind}.gguf"), kind)
        yield f"anchor {kind}", path(f"anchor-{kind}.gguf"), tokens


def read_text(name):
    """The beginning of a development text."""
    full = os.path.join(shared, "data", "dev", name)
    with open(full, encoding="utf-8") as f:
        text = f.read(4 * TEXT_BYTES)
    if name.endswith(".jsonl"):
        with open(full, encoding="utf-8") as f:
            text = json.loads(f.readline())["text"]
    return text[:TEXT_BYTES]


# ---- tests ----


def test_logits():
    cases = list(write_cases())
    jobs = []
    for i, (name, model, tokens) in enumerate(cases):
        np.asarray(tokens, "<i4").tofile(path(f"{i}.tokens"))
        jobs.append(dict(model=model, tokens=path(f"{i}.tokens"),
                         out=path(f"{i}.logits"),
                         greedy=N_GREEDY if "F32" in name else 0))
    results, version = ask_peer(jobs)
    print(f"llama.cpp {version}; distance from float64, of the range of logits")
    print(f"{'model':30} {'prefill':>9} {'decode':>9} {'llama.cpp':>9}")
    for i, (name, model, tokens) in enumerate(cases):
        reference = Decoder(model).logits(tokens)
        prefill = run(model, tokens, chunk=1)
        decode = run(model, tokens, prefill=0, greedy=jobs[i]["greedy"])
        theirs = np.fromfile(path(f"{i}.logits"), "<f4").reshape(
            reference.shape)
        ours = [distance(r.logits, reference) for r in (prefill, decode)]
        peer = distance(theirs, reference)
        print(f"{name:30} {ours[0]:9.1e} {ours[1]:9.1e} {peer:9.1e}")
        if "F32" in name:
            check(f"{name}: distance", max(ours) <= FLOAT_LIMIT)
            check(f"{name}: llama.cpp is elsewhere", peer <= FLOAT_LIMIT)
            check(f"{name}: greedy",
                  decode.info["greedy"] == results[i]["greedy"])
        else:
            check(f"{name}: llama.cpp is closer", max(ours) <= peer)


def test_perplexity():
    texts = ("books-dev.jsonl", "wiki-small-dev.jsonl",
             os.path.join("wikitext-2", "wiki.valid.tokens"))
    models = {"Q8_0": anchor, "F32": path("anchor-F32.gguf"),
              "F16": path("anchor-F16.gguf")}
    print(f"{'perplexity':30} {'ours':>9} {'llama.cpp':>9}")
    jobs, ours = [], []
    for i, text in enumerate(texts):
        for kind, model in models.items():
            tokens, report = score(model, read_text(text), WINDOW)
            tokens.tofile(path(f"{i}.text"))
            jobs.append(dict(model=model, tokens=path(f"{i}.text"),
                             windows=WINDOW))
            ours.append((f"{os.path.basename(text)} {kind}", report))
    for (name, report), theirs in zip(ours, ask_peer(jobs)[0]):
        check(f"{name}: tokens", report["scored"] == theirs["scored"])
        a, b = (np.exp(r["nll"] / r["scored"]) for r in (report, theirs))
        print(f"{name:30} {a:9.3f} {b:9.3f}")
        check(f"{name}: perplexity {a} and {b}",
              abs(a / b - 1) <= PERPLEXITY_LIMIT)


with work:
    test_logits()
    if shared:
        test_perplexity()
    else:
        print("MB_SHARED is not set: perplexity not compared")
print(f"decoder_peer: {len(failures)} failures")
sys.exit(1 if failures else 0)
