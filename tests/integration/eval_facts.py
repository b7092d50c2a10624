#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/eval_facts.py - membank-eval facts measures what it says.

Two steps of each training: nothing is learnt, all is measured; what a miniature
learns, quality/facts.py shows. ctest: timeout=600"""
import json
import os
import subprocess
import sys
import tempfile

tool = os.path.join(os.environ["MB_BINARY_DIR"], "tools", "membank-eval")
folder = tempfile.mkdtemp(prefix="membank-facts-test-")


def run(*args, code=0):
    p = subprocess.run([tool, *args], capture_output=True, text=True,
                       timeout=500, check=False)
    assert p.returncode == code, (args, p.returncode, p.stdout, p.stderr)
    return p


def test():
    table = os.path.join(folder, "facts.csv")
    small = ["--fan-out", "2", "--tokens", "1024", "--batch", "8", "--threads",
             "1"]
    r, = [json.loads(line) for line in
          run("--json", *small, "--route", "oracle", "--csv", table,
              "facts").stdout.splitlines()]
    assert (r["tokens"], r["route"]) == (1024, "oracle"), r
    assert [round(x, 6) for x in r["routed"]] == [100, 100, 100], r
    names = [x["name"] for x in r["runs"]]
    assert names == ["A1", "A3", "A3, generic block", "A3, small",
                     "A3, subtree denied", "A2", "A2, subtree denied", "B",
                     "dense"], names
    assert all(x["ppl"] > 1 and len(x["buckets"]) == 5 for x in r["runs"]), r
    a1, a3 = r["runs"][0], r["runs"][1]
    assert a3["parameters"] - a1["parameters"] == 4 * 3 * 128 * 56, r
    assert a1["ppl"] != a3["ppl"], r
    criteria = {c["number"]: c for c in r["criteria"]}
    assert sorted(criteria) == [1, 2, 3, 4, 5, 7, 10, 13, 14, 17], criteria
    assert criteria[1]["met"] and criteria[17]["met"], criteria
    assert not criteria[4]["met"], criteria
    assert "others equal" in criteria[14]["measured"], criteria
    rows = open(table, encoding="utf-8").read().splitlines()
    assert len(rows) == 1 + 9 * 10, rows
    assert sum(int(x.split(",")[-4]) for x in rows
               if x.split(",")[-6] == "element") == 9 * 118, rows
    assert "oracle" in run("--route", "x", "facts", code=1).stderr
    run("--fan-out", "9", "facts", code=1)


try:
    test()
finally:
    subprocess.run(["rm", "-rf", folder], check=False)
sys.exit(0)
