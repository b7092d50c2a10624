#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# ctest: timeout=170
"""tests/fault/kill9.py - kill -9 at random moments of a mixed load.

Puts, replacements, deletes, refits and tree builds run against a real daemon,
pipelined; then SIGKILL. After each restart: verify is clean, every acknowledged
put is there with its text and found by its own word, every acknowledged delete
is gone from get and from search, what was in flight is either done or not.

MB_KILLS    how many kills (default 12; the full run is 200)
MB_SEED     seed of the load and of the moments
MB_STORE    a store to start from (copied); start-up must then take < 1 s too"""
import os
import random
import shutil
import signal
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

kills = int(os.environ.get("MB_KILLS", "12"))
seed = int(os.environ.get("MB_SEED", str(random.randrange(1 << 30))))
rng = random.Random(seed)
binary = os.path.join(os.environ["MB_BINARY_DIR"], "daemon", "membankd")
folder = tempfile.mkdtemp(prefix="membank-kill9-")
store = os.path.join(folder, "store")
if os.environ.get("MB_STORE"):
    shutil.copytree(os.environ["MB_STORE"], store)
endpoint = f"ipc://{folder}/sock"
context = zmq.Context()
WORDS = [f"{a}{b}{c}" for a in ("ka", "mo", "ti", "ru", "se", "lo")
         for b in ("la", "ne", "po", "vi", "xu") for c in ("", "n", "r", "st")]


daemons = []  # all processes: none may outlive the test


class Daemon:
    def __init__(self):
        self.log = open(os.path.join(folder, "log"), "ab")
        started = time.monotonic()
        # Small limits, so that refits and trees happen all the time.
        self.process = subprocess.Popen(
            [binary, "--store", store, "--listen", endpoint,
             "--flat-below", "300", "--refit-quiet-ms", "20"],
            stderr=self.log)
        daemons.append(self.process)
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)
        self.next = 0
        self.call("ping", {}, 30)
        self.start_ms = (time.monotonic() - started) * 1e3

    def send(self, op, args):
        self.next += 1
        self.socket.send(msgpack.packb(
            {"v": 1, "id": self.next, "op": op, "args": args}))
        return self.next

    def receive(self, timeout_s):
        if not self.socket.poll(timeout_s * 1000):
            return None
        return msgpack.unpackb(self.socket.recv_multipart()[-1])

    def call(self, op, args, timeout_s=30):
        ticket = self.send(op, args)
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            reply = self.receive(1)
            if reply and reply["id"] == ticket:
                if not reply["ok"]:
                    raise AssertionError(f"{op}: {reply['error']}")
                return reply["result"]
            if self.process.poll() is not None:
                raise AssertionError("the daemon has ended: " + tail())
        raise AssertionError(f"{op}: no answer in {timeout_s} s; " + tail())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.socket.close()
        self.log.close()


def tail():
    with open(os.path.join(folder, "log"), "rb") as f:
        return f.read()[-2000:].decode(errors="replace")


def make(doc_id, version):
    """A document and the word that only this version of it has."""
    own = f"zq{doc_id}v{version}qz"
    n = rng.choice((5, 30, 200, 900))
    words = [rng.choice(WORDS) for _ in range(n)]
    words.insert(rng.randrange(len(words)), own)
    return {"id": f"doc{doc_id}", "title": f"Title {doc_id}",
            "text": " ".join(words) + ".",
            "meta": {"version": version, "parity": doc_id % 2}}, own


# id -> (version, own word, text) of the acknowledged state; absent: deleted.
acked = {}
# ticket -> [(id, outcome or None for delete), ...]
in_flight = {}
gone = {}  # id -> own word of what an acknowledged delete took away
version = 0


def busy_ids():
    return {i for ops in in_flight.values() for i, _ in ops}


def step(d):
    """Send one random write."""
    global version
    busy = busy_ids()
    free = [i for i in (rng.randrange(600) for _ in range(40))
            if i not in busy]
    if not free:
        return
    free = list(dict.fromkeys(free))
    kind = rng.random()
    if kind < 0.70:
        docs, ops = [], []
        for i in free[:rng.choice((1, 2, 8, 20))]:
            version += 1
            doc, own = make(i, version)
            docs.append(doc)
            ops.append((i, (version, own, doc["text"])))
        in_flight[d.send("put", {"collection": "c", "documents": docs})] = ops
    elif kind < 0.95:
        ids = free[:rng.choice((1, 3))]
        ticket = d.send(
            "delete", {"collection": "c", "ids": [f"doc{i}" for i in ids]})
        in_flight[ticket] = [(i, None) for i in ids]
    else:
        d.send("rebuild", {"collection": "c"})


def settle(reply):
    ops = in_flight.pop(reply["id"], None)
    if ops is None:
        return
    if not reply["ok"]:
        raise AssertionError(f"a write failed: {reply['error']}")
    for i, outcome in ops:
        apply(i, outcome)


def apply(i, outcome):
    if outcome is None:
        if i in acked:
            gone[i] = acked.pop(i)[1]
    else:
        acked[i] = outcome
        gone.pop(i, None)


def check(d):
    """Compare the store with what was acknowledged."""
    result = d.call("verify", {}, 120)
    assert result["broken"] == 0, f"verify: {result}"
    maybe = {}
    for ops in in_flight.values():
        for i, outcome in ops:
            maybe[i] = outcome
    in_flight.clear()
    found = {}
    after = ""
    while True:
        page = d.call("list", {"collection": "c", "after": after,
                               "limit": 1000})["documents"]
        for doc in page:
            found[int(doc["id"][3:])] = doc
        if len(page) < 1000:
            break
        after = page[-1]["id"]
    for i in set(acked) | set(found) | set(maybe):
        have = found[i]["meta"]["version"] if i in found else None
        want = acked[i][0] if i in acked else None
        if i in maybe:
            new = maybe[i][0] if maybe[i] else None
            assert have in (want, new), f"doc{i}: {have}, not {want} or {new}"
            if have == new:
                apply(i, maybe[i])
        else:
            assert have == want, f"doc{i} is at {have}, acknowledged {want}"
    for i in rng.sample(sorted(acked), min(40, len(acked))):
        _, own, text = acked[i]
        got = d.call("get", {"collection": "c", "id": f"doc{i}"})
        assert got["text"] == text, f"doc{i}: another text"
        for mode in ("lexical", "hybrid"):
            hits = d.call("query", {"collection": "c", "text": own,
                                    "mode": mode, "k": 3})["hits"]
            assert hits and hits[0]["id"] == f"doc{i}", \
                f"doc{i} is not found by its own word ({mode}): {hits}"
    for i in rng.sample(sorted(gone), min(40, len(gone))):
        hits = d.call("query", {"collection": "c", "text": gone[i],
                                "mode": "lexical", "k": 3})["hits"]
        assert not hits, f"deleted doc{i} is still found: {hits}"


def main():
    slowest = 0.0
    writes = 0
    for n in range(kills):
        d = Daemon()
        slowest = max(slowest, d.start_ms)
        d.call("create", {"name": "c", "exist_ok": True})
        check(d)
        until = time.monotonic() + rng.uniform(0.02, 1.2)
        while time.monotonic() < until:
            while len(in_flight) < 6 and time.monotonic() < until:
                before = len(in_flight)
                step(d)
                writes += len(in_flight) - before
                if len(in_flight) == before:
                    break
            reply = d.receive(0.005)
            if reply:
                settle(reply)
            if d.process.poll() is not None:
                raise AssertionError("the daemon has ended: " + tail())
        d.kill()
    d = Daemon()
    slowest = max(slowest, d.start_ms)
    check(d)
    d.kill()
    print(f"{kills} kills, {writes} writes, {len(acked)} documents at the end, "
          f"slowest start {slowest:.0f} ms")
    if os.environ.get("MB_STORE"):
        assert slowest < 1000, "start-up took more than a second"


try:
    main()
    status = 0
except AssertionError as failure:
    print(f"FAILED (MB_SEED={seed}): {failure}")
    print(tail())
    status = 1
finally:
    for process in daemons:
        if process.poll() is None:
            process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)
sys.exit(status)
