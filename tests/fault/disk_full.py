#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/fault/disk_full.py - a daemon on a full disk, and on a read-only one.

A small tmpfs is filled by puts. Then: the put is refused with no_space, reads
and queries go on, verify is clean, every acknowledged document is there; with
room made again, writes go on without a restart. Remounted read-only: the daemon
says so and ends, membank-dump still reads. Skipped where mounting is refused."""
import os
import random
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

build = os.environ["MB_BINARY_DIR"]
membankd = f"{build}/daemon/membankd"
dump = f"{build}/tools/membank-dump"
folder = tempfile.mkdtemp(prefix="membank-full-")
disk = os.path.join(folder, "disk")
os.mkdir(disk)
context = zmq.Context()
rng = random.Random(7)


def mount(*args):
    return subprocess.run(["mount", *args], capture_output=True).returncode


def words(n):
    return " ".join("".join(rng.choice("abcdefghiklmnopqrstuvw")
                            for _ in range(rng.randrange(3, 9)))
                    for _ in range(n))


started = []  # all daemons: none may outlive the test


class Daemon:
    def __init__(self):
        self.log = os.path.join(folder, "log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [membankd, "--store", f"{disk}/store", "--listen",
                 f"ipc://{folder}/sock"], stderr=log)
        started.append(self.process)
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(f"ipc://{folder}/sock")
        self.n = 0

    def ask(self, op, args):
        self.n += 1
        self.socket.send(msgpack.packb(
            {"v": 1, "id": self.n, "op": op, "args": args}))
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if self.socket.poll(200):
                reply = msgpack.unpackb(self.socket.recv())
                assert reply["id"] == self.n
                return reply
            assert self.process.poll() is None, "the daemon ended: " + \
                open(self.log, encoding="utf-8").read()[-2000:]
        raise AssertionError(f"{op}: no answer")

    def call(self, op, args):
        reply = self.ask(op, args)
        assert reply["ok"], (op, reply)
        return reply["result"]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        self.socket.close()
        return self.process.returncode


def check(d, acked):
    """Everything acknowledged is there, found and sound."""
    assert d.call("verify", {})["broken"] == 0
    assert d.call("collections", {"name": "c"})["collections"][0][
        "documents"] == len(acked), len(acked)
    for i in rng.sample(sorted(acked), min(20, len(acked))):
        got = d.call("get", {"collection": "c", "id": i})
        assert got["text"] == acked[i], i
        hits = d.call("query", {"collection": "c", "text": f"own{i}", "k": 1,
                                "mode": "lexical"})["hits"]
        assert hits and hits[0]["id"] == i, (i, hits)


def fill(d, acked):
    """Puts until one is refused; returns the error."""
    for n in range(20000):
        i = f"d{len(acked)}x{n}"
        doc = {"id": i, "text": f"own{i} " + words(600)}
        reply = d.ask("put", {"collection": "c", "documents": [doc]})
        if not reply["ok"]:
            return reply["error"]
        acked[i] = doc["text"]
    raise AssertionError("the disk does not become full")


def main():
    acked = {}
    d = Daemon()
    d.call("create", {"name": "c"})
    error = fill(d, acked)
    assert error["code"] == "no_space" and error["retry"], error
    print(f"full after {len(acked)} documents: {error['message']}")
    assert len(acked) > 100
    check(d, acked)

    # More of the same is refused as clearly, and costs nothing.
    for _ in range(5):
        error = fill(d, acked)
        assert error["code"] == "no_space", error
    check(d, acked)

    # Deletes need some room too; given that, they and puts go on.
    assert mount("-o", "remount,size=32m", disk) == 0
    gone = sorted(acked)[:50]
    assert d.call("delete", {"collection": "c", "ids": gone})["deleted"] == 50
    for i in gone:
        del acked[i]
    doc = {"id": "later", "text": "ownlater " + words(50)}
    d.call("put", {"collection": "c", "documents": [doc]})
    acked["later"] = doc["text"]
    check(d, acked)
    assert d.stop() == 0

    d = Daemon()
    check(d, acked)
    assert d.stop() == 0

    assert mount("-o", "remount,ro", disk) == 0
    refused = subprocess.run(
        [membankd, "--store", f"{disk}/store", "--listen",
         f"ipc://{folder}/sock2"], capture_output=True, text=True, timeout=20)
    assert refused.returncode == 1, refused
    assert "read-only" in refused.stderr.lower(), refused.stderr
    seen = subprocess.run([dump, "--store", f"{disk}/store", "verify"],
                          capture_output=True, text=True, timeout=60)
    assert seen.returncode == 0, seen
    print("read-only:", refused.stderr.strip().splitlines()[-1])
    print("read-only dump:", seen.stdout.strip())


if mount("-t", "tmpfs", "-o", "size=12m", "tmpfs", disk) != 0:
    print("skipped: cannot mount a tmpfs here")
    os.rmdir(disk)
    os.rmdir(folder)
    sys.exit(77)
status = 1
try:
    main()
    status = 0
except AssertionError as failure:
    print("FAILED:", failure)
    print(open(os.path.join(folder, "log"), encoding="utf-8",
               errors="replace").read()[-2000:])
finally:
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
    subprocess.run(["umount", disk], check=False)
    subprocess.run(["rm", "-rf", folder], check=False)
sys.exit(status)
