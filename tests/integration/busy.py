#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/busy.py - every operation at once.

Several clients do whatever the protocol has, in collections that they share
and drop under each other; fits run as often as they can, SIGHUP changes limits
and opens the log anew. Made for the thread sanitizer. Only errors that such
company explains may come; all is sound afterwards; and SIGTERM in the middle
of it ends the daemon well. MB_TEST_SECONDS makes it longer."""
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time

import msgpack
import zmq

build = os.environ["MB_BINARY_DIR"]
SECONDS = float(os.environ.get("MB_TEST_SECONDS", "8"))
SEED = int(os.environ.get("MB_TEST_SEED", "1"))
N_CLIENTS = 6
WAIT_S = 60
# What others do at the same time explains these.
EXPECTED = {"busy", "not_found", "exists", "cancelled", "timeout",
            "mismatch"}
AT_THE_END = EXPECTED | {"shutting_down"}
WORDS = [a + b + c for a in ("ka", "lo", "mi", "ru", "ten") for b in
         ("sa", "vor", "ne", "pi") for c in ("dul", "gra", "he", "s", "t")]
NO_VECTORS = {"settings": {"embedding": "none"}}
DIM = 8
VECTORS = {"settings": {"embedding": {"kind": "client", "dim": DIM}}}
SETTINGS = {"three": NO_VECTORS, "four": VECTORS}
problems = []
counts = {}
ending = threading.Event()  # SIGTERM is on its way
stopping = threading.Event()


class Client:
    def __init__(self, endpoint, rng):
        self.rng = rng
        self.n = 0
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)

    def ask(self, op, **args):
        """The result, or None for an error that is expected."""
        self.n += 1
        self.socket.send(msgpack.packb(
            {"v": 1, "id": self.n, "op": op, "args": args}))
        until = time.monotonic() + WAIT_S
        while not self.socket.poll(100):
            if ending.is_set():
                raise EOFError
            if time.monotonic() > until:
                problems.append(f"{op}: no reply")
                stopping.set()
                return None
        reply = msgpack.unpackb(self.socket.recv())
        code = "ok" if reply["ok"] else reply["error"]["code"]
        counts[op, code] = counts.get((op, code), 0) + 1
        if reply["id"] != self.n or (not reply["ok"] and code not in (
                AT_THE_END if ending.is_set() else EXPECTED)):
            problems.append(f"{op}: {reply}")
            stopping.set()
        return reply.get("result")

    def text(self, n):
        return " ".join(self.rng.choice(WORDS) for _ in range(n))

    def vector(self):
        return [self.rng.gauss(0, 1) for _ in range(DIM)]

    def put(self, coll, n, **more):
        self.ask("put", collection=coll, documents=[
            {"id": f"d{self.rng.randrange(300)}", "title": self.text(3),
             "text": self.text(self.rng.randrange(5, 600)),
             "meta": {"n": self.rng.randrange(10)},
             **({"vector": self.vector()} if coll == "four" else {})}
            for _ in range(n)], **more)

    def query(self, coll):
        mode = ("lexical" if coll == "three" else
                self.rng.choice(("hybrid", "dense", "lexical")))
        what = ({"vector": self.vector(), "mode": "dense"} if coll == "four"
                else {"text": self.text(4), "mode": mode})
        self.ask("query", collection=coll, k=20,
                 filter={"n": {"$lt": self.rng.randrange(1, 11)}}, **what)

    def step(self, folder):
        rng = self.rng
        coll = rng.choice(("one", "two", "two", "three", "four", "four"))
        what = rng.randrange(100)
        one = f"d{rng.randrange(300)}"
        if what < 25:
            self.put(coll, rng.randrange(1, 20))
        elif what < 27:
            self.put(coll, 1, wait="searchable")
        elif what < 55:
            self.query(coll)
        elif what < 65:
            self.ask("query", collection=coll, queries=[
                {"text": self.text(3), "mode": "lexical"}
                for _ in range(8)], explain=True)
        elif what < 70:
            self.ask("get", collection=coll, id=one)
        elif what < 74:
            self.ask("list", collection=coll, limit=50)
        elif what < 80:
            self.ask("delete", collection=coll, ids=[one, "none"])
        elif what < 82:
            self.ask("delete", collection=coll,
                     filter={"n": rng.randrange(10)})
        elif what < 86:
            self.ask("embed", collection=coll, texts=[self.text(5)] * 3)
        elif what < 90:
            self.ask("stats", **rng.choice(
                ({}, {"format": "prometheus"}, {"collection": coll})))
        elif what < 92:
            self.ask("jobs")
        elif what < 94:
            self.ask("collections")
        elif what < 96:
            self.ask("rebuild", collection=coll)
        elif what == 96:
            self.ask("verify", wait=rng.choice((True, False)))
        elif what == 97:
            self.ask("snapshot", to=f"s{rng.randrange(10 ** 9)}",
                     wait=rng.choice((True, False)))
        elif what == 98 and coll != "two":
            self.ask("drop", name=coll)
        else:
            self.ask("create", name=coll, exist_ok=True,
                     **SETTINGS.get(coll, {}))


def client_main(endpoint, folder, number):
    client = Client(endpoint, random.Random(SEED * 1000 + number))
    try:
        while not stopping.is_set():
            client.step(folder)
    except EOFError:
        pass  # the daemon has ended, as it should
    except Exception as e:  # or the thread would end unnoticed
        problems.append(f"client {number}: {e!r}")
        stopping.set()
    client.socket.close()


def write_config(folder, endpoint, n):
    with open(os.path.join(folder, "conf"), "w", encoding="utf-8") as f:
        f.write(f"store = {folder}/store\nlisten = {endpoint}\n"
                f"log_file = {folder}/log\nlog_level = debug\n"
                "refit_min_segments = 8\nrefit_quiet_ms = 50\n"
                "flat_below = 50\n"
                f"max_client_bytes = {50 + n}M\n"
                f"max_embedding_bytes = {n % 2}M\n"
                f"inline_us = {n % 3 * 3000}\n")


def fail(folder, why):
    with open(os.path.join(folder, "log"), encoding="utf-8",
              errors="replace") as f:
        print("".join(f.readlines()[-40:]))
    with open(os.path.join(folder, "stderr"), encoding="utf-8",
              errors="replace") as f:
        print(f.read())
    sys.exit(f"MB_TEST_SEED={SEED}: {why}")


def start(folder, endpoint):
    write_config(folder, endpoint, 0)
    with open(os.path.join(folder, "stderr"), "a", encoding="utf-8") as err:
        process = subprocess.Popen(
            [os.path.join(build, "daemon", "membankd"), "--config",
             os.path.join(folder, "conf")], stdout=err, stderr=err)
    until = time.monotonic() + WAIT_S
    while not os.path.exists(os.path.join(folder, "s")):
        if process.poll() is not None or time.monotonic() > until:
            fail(folder, "the daemon did not start")
        time.sleep(0.01)
    return process


def be_busy(folder, endpoint, process, terminate):
    """All clients, for SECONDS; SIGTERM comes while they are at it, or not."""
    stopping.clear()
    threads = [threading.Thread(target=client_main,
                                args=(endpoint, folder, i + 100 * terminate))
               for i in range(N_CLIENTS)]
    for t in threads:
        t.start()
    until = time.monotonic() + (SECONDS / 4 if terminate else SECONDS)
    n = 0
    while time.monotonic() < until and not stopping.is_set():
        stopping.wait(0.2)
        n += 1
        write_config(folder, endpoint, n)
        if process.poll() is None:
            process.send_signal(signal.SIGHUP)
    if terminate:
        ending.set()
        process.terminate()
        process.wait(timeout=WAIT_S)
    stopping.set()
    for t in threads:
        t.join()
    ending.clear()
    code = process.poll()
    if problems or code not in ((0,) if terminate else (None,)):
        fail(folder, f"daemon's exit code {code}; {problems[:5]}")


def main():
    with tempfile.TemporaryDirectory(prefix="mbtest") as folder:
        endpoint = f"ipc://{folder}/s"
        process = start(folder, endpoint)
        try:
            first = Client(endpoint, random.Random(SEED))
            for name in ("one", "two"):
                first.ask("create", name=name)
                first.put(name, 100)
            for name, settings in SETTINGS.items():
                first.ask("create", name=name, **settings)
            be_busy(folder, endpoint, process, False)
            result = first.ask("verify")
            if problems or result["broken"] != 0:
                fail(folder, f"verify: {result} {problems}")
            be_busy(folder, endpoint, process, True)
            process = start(folder, endpoint)
            result = Client(endpoint, random.Random(SEED)).ask("verify")
            if problems or result["broken"] != 0:
                fail(folder, f"verify after the end: {result} {problems}")
        finally:
            process.terminate()
            process.wait(timeout=WAIT_S)
        if process.returncode != 0:
            fail(folder, f"ended with {process.returncode}")
        for (op, code), n in sorted(counts.items()):
            print(f"{op:12} {code:14} {n}")
        for op in ("put", "query", "delete", "embed", "stats"):
            if not counts.get((op, "ok")):
                sys.exit(f"MB_TEST_SEED={SEED}: {op} never worked")


main()
