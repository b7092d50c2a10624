#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/quality/export_peer.py - what the trainer exports, in llama.cpp.

ctest: label=peer;slow timeout=600

A small model is trained for some steps on the sample texts and exported as F32,
F16 and Q8_0. llama.cpp must load each and find text as likely as we do, and the
F32 file as likely as the trainer says. Environment:
  MB_PEER_LLAMA  a folder where `npm install node-llama-cpp` was done"""
import csv
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

source = os.environ["MB_SOURCE_DIR"]
sys.path.insert(0, os.path.join(source, "tests", "support"))
from decoder_run import score  # noqa: E402

LIMIT = 5e-3        # of the perplexity
FLOAT_LIMIT = 1e-4  # of the same, for F32
WINDOW = 126        # 63 tokens for each 64 of the 128 rows
TEXT_CHARS = 3000
CONFIG = """
tokenizer = {vocab}
source = shards/a.mbtok 1
layers = 3
width = 64
heads = 4
kv_heads = 2
head_dim = 32
ffn = 96
rows = 128
tasks = 0.1
batch = 4
tokens = 20k
rate = 5e-3
warmup = 5
threads = 2
heldout_steps = 0
"""

peer_folder = os.environ.get("MB_PEER_LLAMA")
tool = os.path.join(os.environ["MB_BINARY_DIR"], "tools", "membank-train")
vocab = os.path.join(source, "model", "weights", "anchor.gguf")
if not peer_folder:
    print("MB_PEER_LLAMA is not set: no llama.cpp to compare with")
    sys.exit(77)


def train(folder, lines):
    """A run of some steps in the folder."""
    with open(f"{folder}/a.jsonl", "w", encoding="utf-8") as f:
        f.writelines(lines)
    with open(f"{folder}/run.conf", "w", encoding="utf-8") as f:
        f.write(CONFIG.format(vocab=vocab))
    for args in (["shards", "-o", "shards", "--tokenizer", vocab,
                  "a=a.jsonl", "dev=dev.txt"],
                 ["anchor", "-c", "run.conf", "-o", "run"]):
        subprocess.run([tool, args[0], "-q", *args[1:]], cwd=folder,
                       check=True, stdout=subprocess.DEVNULL)


def ask_peer(folder, jobs):
    with open(f"{folder}/jobs.json", "w", encoding="utf-8") as f:
        json.dump(jobs, f)
    p = subprocess.run(
        ["node", os.path.join(source, "tests", "support", "peer_logits.mjs"),
         peer_folder, f"{folder}/jobs.json"], capture_output=True, text=True,
        timeout=500, check=False)
    if p.returncode != 0:
        sys.exit(f"llama.cpp failed: {p.stdout} {p.stderr}")
    return json.loads(p.stdout.splitlines()[-1])


def trainers_own(folder):
    """Perplexity by the trainer's forward pass, plain windows."""
    out = subprocess.run(
        [tool, "eval", "--csv", "--tasks", "0", "run",
         "dev=shards/dev.mbtok"], cwd=folder, check=True,
        capture_output=True, text=True).stdout
    return float(next(csv.DictReader(out.splitlines()))["perplexity"])


def main():
    failed = 0
    with open(os.path.join(source, "tools", "sample", "inaugural.jsonl"),
              encoding="utf-8") as f:
        lines = f.readlines()
    text = json.loads(lines[-1])["text"][:TEXT_CHARS]
    with tempfile.TemporaryDirectory(prefix="membank-peer-test-") as folder:
        with open(f"{folder}/dev.txt", "w", encoding="utf-8") as f:
            f.write(text)
        train(folder, lines[:-1])
        jobs, ours = [], []
        for kind in ("f32", "f16", "q8_0"):
            model = f"{folder}/run/model-{kind}.gguf"
            tokens, report = score(model, text, WINDOW)
            tokens.tofile(f"{folder}/{kind}.tokens")
            jobs.append(dict(model=model, tokens=f"{folder}/{kind}.tokens",
                             windows=WINDOW))
            ours.append((kind, report))
        *theirs, version = ask_peer(folder, jobs)
        print(f"llama.cpp {version}\n{'file':8} {'ours':>10} {'llama.cpp':>10}")
        for (kind, report), peer in zip(ours, theirs):
            a, b = (np.exp(r["nll"] / r["scored"]) for r in (report, peer))
            print(f"{kind:8} {a:10.4f} {b:10.4f}")
            limit = FLOAT_LIMIT if kind == "f32" else LIMIT
            if report["scored"] != peer["scored"] or abs(a / b - 1) > limit:
                failed += 1
                print(f"FAILED: {kind}")
        # The trainer's windows have one target more each: near is enough.
        own = trainers_own(folder)
        print(f"{'trainer':8} {own:10.4f}")
        if not 50 < own < 8000 or abs(own / b - 1) > 0.05:
            failed += 1
            print("FAILED: the trainer finds another perplexity")
    return failed


sys.exit(1 if main() else 0)
