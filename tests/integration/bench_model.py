#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/bench_model.py - what membank-bench says of a model.

Figures are not tested, but that each series is there, that rates follow from
times, and that wrong options are refused."""
import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.environ["MB_SOURCE_DIR"], "tests",
                                "support"))
import make_model  # noqa: E402

tool = os.path.join(os.environ["MB_BINARY_DIR"], "tools", "membank-bench")


def run(*args, code=0):
    p = subprocess.run([tool, *args], capture_output=True, text=True,
                       timeout=100, check=False)
    assert p.returncode == code, (args, p.returncode, p.stdout, p.stderr)
    return p


def near(a, b):
    return abs(a - b) <= 1e-6 * abs(b)


with tempfile.TemporaryDirectory(prefix="membank-bench-test-") as folder:
    model = os.path.join(folder, "m.gguf")
    make_model.make(model, type="Q8_0", n_layers=1, d_model=64, n_heads=4,
                    d_ff=64, n_vocab=300)
    small = ["--model", model, "--prompts", "8,30", "--contexts", "4,70",
             "--sequences", "1,3", "--clients", "5"]
    r = json.loads(run("--json", *small, "--threads", "1", "generate").stdout)
    assert (r["arch"], r["weights"], r["cache"]) == ("llama", "Q8_0", "f16"), r
    # All is read for a token but the embedding table, which is not tied.
    assert r["weight_bytes"] - r["decode_bytes"] == 300 * 2 * 34, r
    found = [(s["what"], s["context"], s["sequences"], s["tokens"])
             for s in r["series"]]
    assert found == [("prefill", 0, 1, 8), ("prefill", 0, 1, 30),
                     ("decode", 4, 1, 1), ("decode", 70, 1, 1),
                     ("decode", 4, 3, 3), ("decode", 70, 3, 3)], found
    for s in r["series"]:
        assert s["threads"] == 1 and s["read_bandwidth"] > 1e8, s
        assert near(s["tokens_per_s"], s["tokens"] / s["ms"] * 1000), s
        assert ("weight_bytes_per_s" in s) == (s["what"] == "decode"), s
        if s["what"] == "decode":
            assert near(s["weight_bytes_per_s"],
                        r["decode_bytes"] / s["ms"] * 1000), s
    one, five = r["clients"]
    assert (one["clients"], five["clients"]) == (1, 5), r
    assert five["tokens"] == 5 * one["tokens"] > 0, r
    for c in r["clients"]:
        assert near(c["tokens_per_s"], c["tokens"] / c["last_end_ms"] * 1000), c
        assert 0 < c["longest_first_ms"] < c["last_end_ms"], c
        assert 0 < c["median_pause_ms"] <= c["longest_pause_ms"], c
        # Nobody waits until another is done.
        assert c["first_end_ms"] > c["longest_first_ms"], c
    # Longer than there is cache for: left out, not an error.
    r = json.loads(run("--json", "--model", model, "--prompts", "1",
                       "--contexts", "19999", "--sequences", "1", "--threads",
                       "2", "--cache", "q8_0", "generate").stdout)
    assert [s["threads"] for s in r["series"]] == [2], r
    r = json.loads(run("--json", "--model", model, "embed").stdout)
    assert {(s["what"], s["sequences"], s["tokens"]) for s in r["series"]} == \
        {("embed", 1, 252), ("embed", 8, 2016)}, r
    # Blocks: looked up where they lie, slow only where a tier is slow.
    wide = os.path.join(folder, "wide.gguf")
    make_model.make(wide, type="Q8_0", n_layers=2, d_model=128, n_heads=4,
                    d_ff=256, n_vocab=2000)
    r = json.loads(run("--json", "--model", wide, "--threads", "1", "--calls",
                       "30", "fetch").stdout)
    assert not r["copied"] and 0.08 < r["part"] < 0.12, r
    assert len(r["rows"]) == 3 and r["rows"][0] > r["rows"][2] > 0, r
    warm, cold, held, flat = r["fetches"]
    assert warm["bytes"] == cold["bytes"] == flat["bytes"] > held["bytes"], r
    assert warm["calls"] == 30 and 0 < warm["p50_us"] <= warm["p99_us"], r
    assert flat["p50_us"] >= flat["bytes"] / 500, r  # 0.5 GB/s
    assert flat["p50_us"] > held["p50_us"] and \
        flat["p50_us"] > cold["p50_us"], r
    assert {(p["what"], p["type"]) for p in r["passes"]} == {
        (w, t) for w in ("prefill", "decode") for t in ("F32", "BF16",
                                                        "Q8_0")}, r
    assert all(p["us_with"] > 0 and p["ratio"] > 0 for p in r["passes"]), r
    table = run(*small, "--threads", "1", "generate").stdout.splitlines()
    assert len(table) == 11 and "tokens/s" in table[1], table
    for option, value in (("prompts", "8,"), ("prompts", "0"),
                          ("contexts", "x"), ("contexts", "1,,2"),
                          ("sequences", "17"), ("cache", "f64"),
                          ("model", "none.gguf")):
        p = run(*small, f"--{option}", value, "generate", code=1)
        assert value in p.stderr, p.stderr
    assert "generate" in run("speed", code=2).stderr
print("membank-bench: series, rates and errors as expected")
sys.exit(0)
