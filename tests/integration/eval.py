#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/eval.py - membank-eval on a collection whose measures are
known by hand: each question has one word, so that ranks are certain."""
import json
import math
import os
import subprocess
import sys
import tempfile

tool = os.path.join(os.environ["MB_BINARY_DIR"], "tools", "membank-eval")
folder = tempfile.mkdtemp(prefix="membank-eval-test-")


def write(name, text):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        f.write(text)


def run(*args, code=0):
    p = subprocess.run([tool, *args], capture_output=True, text=True,
                       timeout=100)
    assert p.returncode == code, (args, p.returncode, p.stdout, p.stderr)
    return p


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
    assert "qrels.tsv" in run("ir", folder + "/none", code=1).stderr
    run(code=2)
    run("ppl", folder, code=2)
    left = [f for f in os.listdir(tempfile.gettempdir())
            if f.startswith("membank-eval-") and
            not f.startswith("membank-eval-test-")]
    assert not left, left
    print("membank-eval: measures, table and errors as expected")
finally:
    subprocess.run(["rm", "-rf", folder], check=False)
sys.exit(0)
