#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/eval.py - membank-eval on a collection whose measures are
known by hand: each question has one word, so that ranks are certain; and
perplexity of texts, where figures must follow from one another.
ctest: timeout=600"""
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time

tool = os.path.join(os.environ["MB_BINARY_DIR"], "tools", "membank-eval")
folder = tempfile.mkdtemp(prefix="membank-eval-test-")
# The program's own, which must be empty again at the end.
temporary = tempfile.mkdtemp(prefix="membank-eval-test-")
os.environ["TMPDIR"] = temporary


def write(name, text):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        f.write(text)


def run(*args, code=0):
    p = subprocess.run([tool, *args], capture_output=True, text=True,
                       timeout=100)
    assert p.returncode == code, (args, p.returncode, p.stdout, p.stderr)
    return p


def ppl(*args):
    """Figures of one file."""
    r, = [json.loads(line) for line in
          run("--json", *args).stdout.splitlines()]
    return r


def near(a, b, part):
    return abs(a - b) <= part * abs(b)


def test_ppl():
    text = ("The old man went down to the sea, and there he found a boat. "
            "It was a small boat, but it was good enough for him. " * 12)
    write("text.txt", text)
    file = os.path.join(folder, "text.txt")
    r = ppl("ppl", file)
    assert r["documents"] == 1 and r["bytes"] == len(text), r
    assert r["scored"] == r["tokens"] - 1, r  # all but <s>
    assert near(r["nats_per_token"], r["nll"] / r["scored"], 1e-9), r
    assert near(r["perplexity"], math.exp(r["nats_per_token"]), 1e-9), r
    assert near(r["bits_per_byte"], r["nll"] / math.log(2) / len(text),
                1e-9), r
    # English, seen again and again: far better than 13 bits a token.
    assert 1 < r["perplexity"] < 200, r
    # Threads change nothing; the cache's type, little.
    assert ppl("--threads", "1", "ppl", file)["nll"] == r["nll"]
    assert ppl("--threads", "3", "ppl", file)["nll"] == r["nll"]
    assert near(ppl("--cache", "f32", "ppl", file)["nll"], r["nll"], 1e-3)
    # The whole text in one window: a stride has nothing to do.
    assert r["tokens"] <= r["window"], r
    assert ppl("--stride", "500", "ppl", file)["nll"] == r["nll"]
    # Less to look back at is worse; windows that overlap help.
    short = ppl("--window", "16", "ppl", file)
    over = ppl("--window", "16", "--stride", "4", "ppl", file)
    assert short["scored"] == over["scored"] == r["scored"], (short, over)
    assert r["nll"] < over["nll"] < short["nll"], (r, over, short)
    # A window scores the same alone and amid others in a pass.
    write("two.jsonl", lines([{"id": "1", "text": text},
                              {"id": "2", "text": text}]))
    two = ppl("ppl", os.path.join(folder, "two.jsonl"))
    assert two["documents"] == 2 and two["nll"] == 2 * r["nll"], (two, r)
    # Within one block a landmark is never seen: contexts read like windows.
    write("brief.txt", text[:120])
    brief = os.path.join(folder, "brief.txt")
    assert near(ppl("--context", "landmark", "ppl", brief)["nll"],
                ppl("ppl", brief)["nll"], 1e-3)
    # What repeats is better predicted with blocks from far back.
    args = ["--context", "landmark", "--segment", "1", "ppl"]
    none, some = (ppl(*args, file, "-k", k) for k in ("0", "4"))
    assert none["scored"] == some["scored"] == r["scored"], (none, some)
    assert none["k"] == 0 and some["k"] == 4 and some["segment"] == 1, some
    assert some["nll"] < none["nll"], (some, none)
    two = ppl(*args, os.path.join(folder, "two.jsonl"))
    assert two["nll"] == 2 * some["nll"], (two, some)
    table = run("ppl", file, file).stdout.splitlines()
    assert len(table) == 4 and "bits/byte" in table[1], table
    for words, args in (
            ("has a context of", ["--window", "4096", "ppl", file]),
            ("no text", ["ppl", folder + "/none"]),
            ("--stride", ["--window", "8", "--stride", "9", "ppl", file]),
            ("--cache", ["--cache", "q9", "ppl", file]),
            ("--context", ["--context", "all", "ppl", file]),
            ("--select", ["--context", "landmark", "--select", "x", "ppl",
                          file]),
            ("none.gguf", ["--model", "none.gguf", "ppl", file]),
            ("no-such-file", ["ppl", "no-such-file"])):
        if "none" in args[-1] and not os.path.exists(args[-1]):
            os.mkdir(args[-1])
        assert words in run(*args, code=1).stderr, (words, args)


def test_passkey():
    """The bundled model need not find a key; what is counted must be right."""
    csv, svg = (os.path.join(folder, name) for name in ("p.csv", "p.svg"))
    args = ["--json", "-n", "5", "--segment", "1", "--seed", "7"]
    out = run(*args, "--lengths", "300,900", "--csv", csv, "--svg", svg,
              "passkey").stdout
    r = [json.loads(line) for line in out.splitlines()]
    assert [x["length"] for x in r] == [300, 900], r
    assert all(x["prompts"] == 5 and x["k"] == 4 for x in r), r
    assert all(0 <= x["right"] <= 1 and 0 < x["found"] <= 1 for x in r), r
    rows = open(csv, encoding="utf-8").read().splitlines()
    assert rows[0] == "length,depth,right,found,key,answer", rows
    assert len(rows) == 11 and rows[1].startswith("300,0.1000,"), rows
    right = sum(int(row.split(",")[2]) for row in rows[6:])
    assert right == 5 * r[1]["right"], (right, r)
    for row in rows[1:]:
        parts = row.split(",", 5)
        assert (parts[2] == "1") == (parts[5].strip('"') == parts[4]), row
    picture = open(svg, encoding="utf-8").read()
    assert picture.startswith("<svg") and picture.count("<title>") == 10, picture
    # The same again; nothing is retrieved without blocks, but what is at hand.
    again = run(*args, "--lengths", "300", "passkey").stdout
    assert json.loads(again)["right"] == r[0]["right"]
    none, = (json.loads(run(*args, "-k", "0", "--lengths", "900", "passkey",
                            "--decoys", "3").stdout),)
    assert none["found"] <= 0.2 and none["decoys"] == 3, none
    for words, more in (("--lengths", ["--lengths", "12"]),
                        ("--lengths", ["--lengths", "300,x"]),
                        ("--decoys", ["--decoys", "99"]),
                        ("--digits", ["--digits", "0"]),
                        ("no-such-file", ["--filler", "no-such-file"]),
                        ("p.csv", ["--csv", folder + "/no/p.csv"])):
        assert words in run(*more, "passkey", code=1).stderr, (words, more)


def test_digits():
    csv = os.path.join(folder, "d.csv")
    run("-n", "2", "--lengths", "200", "--digits", "2", "--csv", csv,
        "passkey")
    keys = [row.split(",")[4] for row in
            open(csv, encoding="utf-8").read().splitlines()[1:]]
    assert len(keys) == 2 and all(len(k) == 2 and k.isdigit()
                                  for k in keys), keys


def test_stop():
    """A long measurement ends by a signal."""
    csv = os.path.join(folder, "s.csv")
    p = subprocess.Popen([tool, "--lengths", "4000000", "--csv", csv,
                          "passkey"], stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not os.path.exists(csv) and time.monotonic() < until:
        time.sleep(0.01)
    p.terminate()
    try:
        assert p.wait(timeout=30) == -signal.SIGTERM, p.returncode
    finally:
        p.kill()


def test_verbatim():
    """Lists are the same on all paths; without blocks the landmarks' path is
    the window's."""
    csv, svg = (os.path.join(folder, name) for name in ("v.csv", "v.svg"))
    args = ["--json", "-n", "2", "--words", "4", "--distances", "30,400",
            "--segment", "1"]
    out = run(*args, "-k", "0", "--csv", csv, "--svg", svg,
              "verbatim").stdout
    r = {(x["path"], x["distance"]): x
         for x in map(json.loads, out.splitlines())}
    assert len(r) == 8, r
    kinds = ("repeated", "permuted", "novel")
    for distance in (30, 400):
        a, b = r["window", distance], r["landmark", distance]
        assert all(a[k] == b[k] for k in kinds), (a, b)
        assert r["none", distance]["prompts"] == 2, r
    rows = [row.split(",") for row in
            open(csv, encoding="utf-8").read().splitlines()]
    assert rows[0] == ["path", "distance", "kind", "prompt", "first_nll",
                       "second_nll"], rows
    assert len(rows) == 1 + 8 * 3 * 2, len(rows)
    mine = [row for row in rows if row[:3] == ["none", "400", "novel"]]
    share = 100 * sum(float(x[5]) for x in mine) / sum(float(x[4])
                                                       for x in mine)
    assert near(share, r["none", 400]["novel"], 1e-3), (share, r)
    # Where nothing of the first list is known, kinds differ by chance alone.
    assert all(60 < r["none", 400][k] < 150 for k in kinds), r
    picture = open(svg, encoding="utf-8").read()
    assert picture.startswith("<svg") and picture.count("<title>") == 24
    out = run(*args, "-k", "4", "verbatim").stdout
    more = {(x["path"], x["distance"]): x
            for x in map(json.loads, out.splitlines())}
    assert more["window", 400] == {**r["window", 400], "k": 4}, more
    assert more["landmark", 400]["repeated"] != r["landmark",
                                                  400]["repeated"], more
    for words, wrong in (("--words", ["--words", "1"]),
                         ("--distances", ["--distances", "x"])):
        assert words in run(*wrong, "verbatim", code=1).stderr, words


def lines(rows):
    return "".join(json.dumps(r) + "\n" for r in rows)


try:
    write("corpus.jsonl", lines(
        [{"_id": "d 1", "title": "", "text": "apple apple apple apple"},
         {"_id": "d2", "title": "", "text": "apple plum and other words here"},
         {"_id": "d3", "title": "", "text": "nothing to be found"}]))
    write("queries.jsonl", lines(
        [{"_id": "both", "text": "apple"}, {"_id": "late", "text": "apple"},
         {"_id": "lost", "text": "plum"}, {"_id": "unjudged", "text": "plum"}]))
    write("qrels.tsv", "query-id\tcorpus-id\tscore\n"
          "both\td 1\t2\nboth\td2\t1\n"  # found in the best order
          "late\td2\t1\nlate\td 1\t0\n"  # second; grade 0 is not relevant
          "lost\td3\t1\n")               # not found
    rows = [json.loads(line) for line in
            run("--json", "ir", folder).stdout.splitlines()]
    assert [r["mode"] for r in rows] == ["lexical", "dense", "hybrid"], rows
    r = rows[0]
    assert r["queries"] == 3, r
    assert abs(r["ndcg10"] - (1 + 1 / math.log2(3)) / 3) < 1e-6, r
    assert abs(r["recall100"] - 2 / 3) < 1e-6, r
    assert abs(r["mrr"] - (1 + 0.5) / 3) < 1e-6, r
    # Too small to be fitted: dense finds nothing. Hybrid finds more than the
    # words do, as short documents inherit from their neighbours.
    assert rows[1]["ndcg10"] == 0, rows
    assert rows[2]["ndcg10"] >= r["ndcg10"], rows
    table = run("ir", folder, folder).stdout.splitlines()
    assert len(table) == 7 and "nDCG@10" in table[0], table

    write("qrels.tsv", "query-id\tcorpus-id\tscore\nboth\td2\tx\n")
    p = run("ir", folder, code=1)
    assert "qrels.tsv, line 2" in p.stderr, p.stderr
    write("qrels.tsv", "query-id\tcorpus-id\tscore\n")
    assert "no relevant document" in run("ir", folder, code=1).stderr
    assert "qrels.tsv" in run("ir", folder + "/absent", code=1).stderr
    run(code=2)
    test_ppl()
    test_passkey()
    test_digits()
    test_stop()
    test_verbatim()
    run("ppl", code=2)
    left = os.listdir(temporary)
    assert not left, left
    print("membank-eval: measures, table and errors as expected")
finally:
    subprocess.run(["rm", "-rf", folder, temporary], check=False)
sys.exit(0)
