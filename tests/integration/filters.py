#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/filters.py - filters against a plain evaluator.

Random metadata, random filters of every operator and nesting; what `list`
returns must be what an evaluator of a few lines finds, and a query must return
only such documents, as many as there are. Then replacements and deletions by
filter, and filters that make no sense. MB_TEST_SEED repeats a run."""
import os
import random
import subprocess
import sys
import tempfile
import time

try:
    import msgpack
    import zmq
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

seed = int(os.environ.get("MB_TEST_SEED", str(random.randrange(1 << 30))))
rng = random.Random(seed)
folder = tempfile.mkdtemp(prefix="membank-filters-")
daemon = subprocess.Popen(
    [os.path.join(os.environ["MB_BINARY_DIR"], "daemon", "membankd"),
     "--store", f"{folder}/store", "--listen", f"ipc://{folder}/sock"],
    stderr=subprocess.DEVNULL)
socket = zmq.Context().socket(zmq.DEALER)
socket.linger = 0
socket.connect(f"ipc://{folder}/sock")
count = 0

LONG = "x" * 200
VALUES = [None, True, False, 0, 1, -1, 2, 2.5, -7.25, 1e300, 1 << 62,
          (1 << 62) + 1, float(1 << 62), "", "a", "b", "ab", "1", "é", "日本",
          LONG + "1", LONG + "2"]
FIELDS = ["k", "n", "tag", "deep field", "ü"]


def ask(op, args):
    global count
    count += 1
    socket.send(msgpack.packb({"v": 1, "id": count, "op": op, "args": args}))
    assert socket.poll(20000), f"{op}: no answer"
    reply = msgpack.unpackb(socket.recv())
    assert reply["id"] == count
    return reply


def call(op, args):
    reply = ask(op, args)
    assert reply["ok"], (op, args, reply)
    return reply["result"]


# ---- the plain evaluator ----

def kind(v):
    if isinstance(v, bool):
        return "bool"
    if isinstance(v, (int, float)):
        return "number"
    return "str" if isinstance(v, str) else "nil"


def same(a, b):
    return kind(a) == kind(b) and a == b


def values_of(meta, field):
    if field not in meta:
        return []
    v = meta[field]
    return v if isinstance(v, list) else [v]


def in_range(v, ops):
    tests = {"$gt": lambda a, b: a > b, "$gte": lambda a, b: a >= b,
             "$lt": lambda a, b: a < b, "$lte": lambda a, b: a <= b}
    for op, bound in ops.items():
        if kind(v) != kind(bound):
            return False
        a, b = (v.encode(), bound.encode()) if kind(v) == "str" else (v, bound)
        if not tests[op](a, b):
            return False
    return True


def condition(values, cond):
    if not isinstance(cond, dict):
        return any(same(v, cond) for v in values)
    bounds = {o: b for o, b in cond.items()
              if o in ("$gt", "$gte", "$lt", "$lte")}
    if bounds and not any(in_range(v, bounds) for v in values):
        return False
    for op, arg in cond.items():
        if op == "$eq" and not any(same(v, arg) for v in values):
            return False
        if op == "$ne" and any(same(v, arg) for v in values):
            return False
        if op == "$in" and not any(same(v, a) for v in values for a in arg):
            return False
        if op == "$nin" and any(same(v, a) for v in values for a in arg):
            return False
        if op == "$exists" and bool(values) != arg:
            return False
    return True


def matches(meta, f):
    for key, arg in f.items():
        if key == "$and":
            ok = all(matches(meta, g) for g in arg)
        elif key == "$or":
            ok = any(matches(meta, g) for g in arg)
        elif key == "$not":
            ok = not matches(meta, arg)
        else:
            ok = condition(values_of(meta, key), arg)
        if not ok:
            return False
    return True


# ---- random things ----

def random_meta():
    meta = {}
    for field in FIELDS:
        if rng.random() < 0.5:
            continue
        if rng.random() < 0.25:
            meta[field] = [rng.choice(VALUES)
                           for _ in range(rng.randrange(1, 4))]
        else:
            meta[field] = rng.choice(VALUES)
    return meta


def random_condition():
    if rng.random() < 0.25:
        return rng.choice(VALUES)
    cond = {}
    for _ in range(rng.randrange(1, 3)):
        op = rng.choice(("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in",
                         "$nin", "$exists"))
        # Two bounds on the same side are refused, see below.
        if op[:3] in {o[:3] for o in cond}:
            continue
        if op in ("$in", "$nin"):
            cond[op] = [rng.choice(VALUES) for _ in range(rng.randrange(1, 5))]
        elif op == "$exists":
            cond[op] = rng.random() < 0.5
        elif op in ("$eq", "$ne"):
            cond[op] = rng.choice(VALUES)
        else:  # ranges are of numbers or of short strings
            old = next((cond[o] for o in ("$gt", "$gte", "$lt", "$lte")
                        if o in cond), None)
            cond[op] = rng.choice(
                [v for v in VALUES if kind(v) in ("number", "str")
                 and v not in (LONG + "1", LONG + "2")
                 and (old is None or kind(old) == kind(v))])
    return cond


def random_filter(depth=0):
    f = {}
    for _ in range(rng.randrange(1, 3)):
        r = rng.random()
        if r < 0.7 or depth > 2:
            f[rng.choice(FIELDS)] = random_condition()
        elif r < 0.9:
            f[rng.choice(("$and", "$or"))] = [
                random_filter(depth + 1) for _ in range(rng.randrange(1, 4))]
        else:
            f["$not"] = random_filter(depth + 1)
    return f


def ids_of(f):
    return {d["id"] for d in call("list", {"collection": "c", "filter": f,
                                           "limit": 1000})["documents"]}


def compare(docs, n):
    some = 0
    for _ in range(n):
        f = random_filter()
        want = {i for i, meta in docs.items() if matches(meta, f)}
        got = ids_of(f)
        assert got == want, (f, sorted(got ^ want)[:5],
                             [docs[i] for i in sorted(got ^ want)[:5]])
        hits = call("query", {"collection": "c", "text": "common", "k": 300,
                              "filter": f, "one_per_document": True,
                              "fields": ["id"]})["hits"]
        assert {h["id"] for h in hits} == want, (f, len(hits), len(want))
        some += 0 < len(want) < len(docs)
    assert some > n / 4, f"only {some} of {n} filters told documents apart"


def put(docs):
    call("put", {"collection": "c", "documents": [
        {"id": i, "text": "common word " + "filler " * rng.randrange(400),
         "meta": meta} for i, meta in docs.items()]})


def main():
    call("create", {"name": "c"})
    docs = {f"d{i}": random_meta() for i in range(200)}
    put(docs)
    compare(docs, 300)
    again = {i: random_meta() for i in rng.sample(sorted(docs), 80)}
    put(again)
    docs.update(again)
    compare(docs, 150)
    for _ in range(6):
        f = random_filter()
        gone = {i for i, meta in docs.items() if matches(meta, f)}
        if len(gone) == len(docs):
            continue
        result = call("delete", {"collection": "c", "filter": f})
        assert result["deleted"] == len(gone), (f, result, len(gone))
        for i in gone:
            del docs[i]
    assert ids_of({}) == set(docs)
    if docs:
        compare(docs, 20) if len(docs) > 20 else None
    assert call("verify", {})["broken"] == 0

    for bad in ({"$nor": []}, {"k": {"$regex": "a"}}, {"$and": {}},
                {"$and": [1]}, {"$not": []}, {"k": {"$in": 1}},
                {"k": {"$exists": 1}}, {"k": {"$gt": None}}, {"k": [1]},
                {"k": {"$eq": [1]}}, {"k": {}}, {"k": {"$gt": 1, "$gte": 1}}):
        for op, args in (("query", {"text": "x"}), ("list", {}),
                         ("delete", {})):
            reply = ask(op, {"collection": "c", "filter": bad, **args})
            assert not reply["ok"] and reply["error"]["code"] == "bad_arg", \
                (bad, reply)
            assert "filter" in reply["error"]["message"], reply
    deep = {"k": 1}
    for _ in range(40):
        deep = {"$not": deep}
    assert not ask("list", {"collection": "c", "filter": deep})["ok"]
    assert ids_of({}) == set(docs)


status = 1
try:
    main()
    print("filters agree with the plain evaluator")
    status = 0
except AssertionError as failure:
    print(f"FAILED (MB_TEST_SEED={seed}): {failure}")
finally:
    daemon.kill()
    daemon.wait()
    subprocess.run(["rm", "-rf", folder], check=False)
sys.exit(status)
