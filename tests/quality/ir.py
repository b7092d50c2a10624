#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
# tests/quality/ir.py - does search find what people judged relevant?
#
# Puts each collection (BEIR layout) into a daemon of its own, asks all its
# questions in each mode, compares the best segment of each document with the
# judgements. Skipped where the collections are not beside the source tree.
# ctest: label=slow timeout=300
import math
import os
import subprocess
import sys
import tempfile
import time

SOURCE = os.environ["MB_SOURCE_DIR"]
BUILD = os.environ["MB_BINARY_DIR"]
DATA = os.path.join(SOURCE, "..", "shared", "data")
# folder, least nDCG@10 of lexical and of hybrid; hybrid may never fall below
# lexical.
SETS = [
    ("ir/cranfield", 0.50, 0.54),
    ("qa/xquad-en", 0.95, 0.95),
    ("qa/nq-open-oracle", 0.90, 0.90),
]


def judgements(path):
    relevant = {}
    with open(path) as lines:
        next(lines)
        for line in lines:
            query, doc, grade = line.split()
            if int(grade) > 0:
                relevant.setdefault(query, {})[doc] = int(grade)
    return relevant


def measure(run_path, relevant):
    run = {}
    with open(run_path) as lines:
        for line in lines:
            query, _, doc, *_ = line.split()
            run.setdefault(query, []).append(doc)
    ndcg = recall = mrr = 0.0
    for query, grades in relevant.items():
        docs = run.get(query, [])
        gain = sum(grades.get(d, 0) / math.log2(i + 2)
                   for i, d in enumerate(docs[:10]))
        best = sum(g / math.log2(i + 2) for i, g in
                   enumerate(sorted(grades.values(), reverse=True)[:10]))
        ndcg += gain / best
        recall += sum(d in grades for d in docs[:100]) / len(grades)
        mrr += next((1 / (i + 1) for i, d in enumerate(docs) if d in grades), 0)
    n = len(relevant)
    return ndcg / n, recall / n, mrr / n


def tool(name, endpoint, *args):
    subprocess.run([f"{BUILD}/tools/{name}", "--connect", endpoint, "-c", "c",
                    *args], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.PIPE)


def evaluate(folder):
    relevant = judgements(f"{folder}/qrels.tsv")
    result = {}
    with tempfile.TemporaryDirectory(prefix="mbir") as temp:
        endpoint = f"ipc://{temp}/s"
        daemon = subprocess.Popen(
            [f"{BUILD}/daemon/membankd", "--store", f"{temp}/db",
             "--listen", endpoint], stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while (not os.path.exists(f"{temp}/s")
                   and time.monotonic() < deadline):
                time.sleep(0.02)
            tool("membank-ingest", endpoint, "--wait", "searchable",
                 "--jsonl", f"{folder}/corpus.jsonl")
            deadline = time.monotonic() + 30
            for mode in ("lexical", "dense", "hybrid"):
                tool("membank-query", endpoint, "-k", "100", "--mode", mode,
                     "--queries", f"{folder}/queries.jsonl",
                     "--trec", f"{temp}/run")
                # The first fit of the embedding may come after the last put.
                while (os.path.getsize(f"{temp}/run") == 0
                       and time.monotonic() < deadline):
                    time.sleep(0.1)
                    tool("membank-query", endpoint, "-k", "100", "--mode",
                         mode, "--queries", f"{folder}/queries.jsonl",
                         "--trec", f"{temp}/run")
                result[mode] = measure(f"{temp}/run", relevant)
        finally:
            daemon.terminate()
            daemon.wait()
    return result


def main():
    if not os.path.isdir(DATA):
        print("skipped: no collections in", DATA)
        return 77
    failed = 0
    for name, least_lexical, least_hybrid in SETS:
        result = evaluate(os.path.join(DATA, name))
        for mode, (ndcg, recall, mrr) in result.items():
            print(f"{name:18s} {mode:8s} nDCG@10 {ndcg:.4f} "
                  f"recall@100 {recall:.4f} MRR {mrr:.4f}", flush=True)
        lexical, hybrid = result["lexical"][0], result["hybrid"][0]
        if (lexical < least_lexical or hybrid < least_hybrid
                or hybrid < lexical):
            print("FAILED:", name)
            failed += 1
    return 1 if failed else 0


sys.exit(main())
