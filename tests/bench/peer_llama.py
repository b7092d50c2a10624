#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/bench/peer_llama.py - tokens a second beside llama.cpp's.

    MB_PEER_LLAMA=FOLDER MB_BINARY_DIR=build/release \\
        tests/bench/peer_llama.py [MODEL.gguf ...] [--contexts 512,2048]
            [--threads 1,2] [--rounds 3] [--json]

Without models: the bundled one in F32 and Q8_0, and random ones of the shape of
a 135M model in Q8_0 and Q4_K. Both read the same file on the same threads, one
after the other, again and again (ABAB); figures are medians, and beside their
ratio stands that of the best rounds, which a busy machine disturbs less.
llama.cpp runs
with and without flash attention, in batches of 512 and of the whole prompt, and
the best of these counts, by its own clock, without what its binding adds.
FOLDER is where `npm install node-llama-cpp` was done."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

root = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(root, "tests", "support"))
import make_model  # noqa: E402

TOKENS = 64  # that are decoded
BUILD = os.environ.get("MB_BINARY_DIR", os.path.join(root, "build", "release"))
BENCH = os.path.join(BUILD, "tools", "membank-bench")


class Peer:
    """llama.cpp with one model, asked line by line."""

    def __init__(self, model):
        script = os.path.join(root, "tests", "support", "peer_speed.mjs")
        self.process = subprocess.Popen(
            ["node", script, os.environ["MB_PEER_LLAMA"], model], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.hello = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit("llama.cpp ended")
        return json.loads(line)

    def measure(self, **job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def settings(context):
    """Ways to run llama.cpp."""
    batches = sorted({512, context})
    return [dict(flash=flash, batch=batch) for flash in (False, True)
            for batch in batches]


def ours(model, context, threads):
    out = subprocess.run(
        [BENCH, "--json", "--model", model, "--threads", str(threads),
         "--prompts", str(context), "--contexts", str(context),
         "--sequences", "1", "generate"], text=True, capture_output=True,
        check=True).stdout
    series = {row["what"]: row for row in json.loads(out)["series"]}
    decode = series["decode"]
    return {"prefill": series["prefill"]["tokens_per_s"],
            "decode": decode["tokens_per_s"],
            "bandwidth": decode["weight_bytes_per_s"] /
            decode["read_bandwidth"]}


def compare(peer, model, context, threads, rounds):
    """Medians of both, the ratio of the best rounds, and llama.cpp's setting:
    {"prefill": (ours, theirs, ratio, setting), ...}."""
    mine, theirs = [], {}
    for _ in range(rounds):
        mine.append(ours(model, context, threads))
        for s in settings(context):
            r = peer.measure(context=context, threads=threads, tokens=TOKENS,
                             **s)
            theirs.setdefault(json.dumps(s), []).append(r)
    result = {}
    for what in ("prefill", "decode"):
        best = max(theirs, key=lambda s, w=what: statistics.median(
            r[w] for r in theirs[s]))
        result[what] = (statistics.median(r[what] for r in mine),
                        statistics.median(r[what] for r in theirs[best]),
                        max(r[what] for r in mine) /
                        max(r[what] for rs in theirs.values() for r in rs),
                        json.loads(best))
    result["bandwidth"] = statistics.median(r["bandwidth"] for r in mine)
    return result


def default_models(folder):
    """Name and path of each."""
    anchor = os.path.join(root, "model", "weights", "anchor.gguf")
    path = os.path.join(folder, "anchor-f32.gguf")
    make_model.convert(anchor, path, "F32")
    yield "anchor F32", path
    yield "anchor Q8_0", anchor
    for kind in ("Q8_0", "Q4_K"):
        path = os.path.join(folder, f"135m-{kind}.gguf")
        make_model.make(path, type=kind, vocabulary="gpt2", tied=True,
                        **make_model.SHAPES["135m"])
        yield f"135M {kind}", path


def show(name, context, threads, result):
    for what in ("prefill", "decode"):
        a, b, best, s = result[what]
        flash = "flash" if s["flash"] else "plain"
        memory = f"{100 * result['bandwidth']:4.0f}%" if what == "decode" else ""
        print(f"{name:14} {context:7} {threads:7} {what:8} {a:10.0f} {b:10.0f} "
              f"{a / b:6.2f} {best:6.2f} {memory:>7}  {flash}, {s['batch']}",
              flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--contexts", default="512,2048")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if "MB_PEER_LLAMA" not in os.environ:
        print("MB_PEER_LLAMA is not set: no llama.cpp to compare with")
        return 77
    if not args.json:
        print(f"{'model':14} {'context':>7} {'threads':>7} {'pass':8} "
              f"{'ours':>10} {'llama.cpp':>10} {'ratio':>6} {'best':>6} "
              f"{'memory':>7}  its best setting")
    with tempfile.TemporaryDirectory(prefix="membank-bench-") as folder:
        models = [(os.path.basename(m), m) for m in args.models] or \
            default_models(folder)
        for name, path in models:
            peer = Peer(path)
            for threads in map(int, args.threads.split(",")):
                for context in map(int, args.contexts.split(",")):
                    r = compare(peer, path, context, threads, args.rounds)
                    if args.json:
                        print(json.dumps(dict(r, model=name, context=context,
                                              threads=threads)), flush=True)
                    else:
                        show(name, context, threads, r)
            peer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
