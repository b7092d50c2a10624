#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/flood.py - a client that sends 1 GB: others do not notice.

The flood comes from a process of its own, which speaks ZMTP on a plain socket:
so it may break the rules that libzmq keeps, and needs no gigabyte itself. Each
way of flooding is tried while another client asks questions whose answers are
known: none may fail, be wrong or take longer than SLOWEST_S, and the daemon's
memory must not follow what is sent. ctest: timeout=120"""
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time

FLOOD_BYTES = 1 << 30
CHUNK = bytes(1 << 20)
LIMIT = 32 << 20  # max_message_bytes as it is by default
N_DOCUMENTS = 200
MIN_QUERIES = 20  # asked while a flood is under way
# A query takes less than a millisecond. The bound is far above that, as the
# machine may be busy, and far below what waiting for the flood would take.
SLOWEST_S = 1.0
WAIT_S = 60
# What may wait by the limits (max_pending_bytes, 256 MiB), a message of twice
# the limit that is being read, and a little, above what an idle daemon has.
MEMORY_BYTES = 384 << 20
UNFINISHED_BYTES = 320 << 20


# ---- the sender: another process ----

def connect(path):
    """A socket past the handshake of ZMTP 3.0, mechanism NULL."""
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    s.sendall(b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" +
              b"NULL".ljust(20, b"\0") + b"\0" + bytes(31))
    ready = (b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) +
             b"DEALER")
    s.sendall(bytes([4, len(ready)]) + ready)
    head = s.recv(64, socket.MSG_WAITALL)
    if len(head) != 64 or head[0] != 0xFF:
        sys.exit(f"no greeting but {head!r}")
    return s


def send_frame(s, first, size, more=False):
    """A frame of `size` bytes that begins with `first`, zeros behind it."""
    s.sendall(struct.pack(">BQ", 2 | more, size) + first)
    left = size - len(first)
    while left > 0:
        left -= s.send(memoryview(CHUNK)[:min(left, len(CHUNK))])


def one_message(s):
    send_frame(s, b"", FLOOD_BYTES)


def at_the_limit(s):
    """Requests that are read whole, and then found to be none."""
    for _ in range(FLOOD_BYTES // LIMIT):
        send_frame(s, b"\x84\xa1v\x01\xa2id\x01\xa2op\xa3put\xa4args", LIMIT)


def above_the_limit(s):
    for _ in range(FLOOD_BYTES // (2 * LIMIT)):
        send_frame(s, b"", 2 * LIMIT)


def small_ones(s):
    """A million pings, as fast as they go; no reply is read."""
    ping = b"\x83\xa1v\x01\xa2id\x07\xa2op\xa4ping"
    frame = struct.pack("BB", 0, len(ping)) + ping
    for _ in range(64):
        s.sendall(frame * (1 << 14))


def never_ending(s):
    """One message of ever more frames. libzmq keeps them until the last, and
    has no limit for that (section 15 of PROTOCOL.md): what can be asked is
    that others are served, and that the memory comes back."""
    for _ in range(UNFINISHED_BYTES // LIMIT):
        send_frame(s, b"", LIMIT, more=True)


FLOODS = {f.__name__: f for f in (one_message, at_the_limit, above_the_limit,
                                  small_ones, never_ending)}


def send(path, name):
    """Exit code 3: the daemon ended the connection."""
    try:
        s = connect(path)
        print("sending", flush=True)
        FLOODS[name](s)
        s.close()
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(3)


# ---- the others ----

def memory_of(pid):
    """Resident bytes but for those of files, which the kernel may drop."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        return int(re.search(r"RssAnon:\s+(\d+) kB", f.read())[1]) << 10


class Client:
    def __init__(self, endpoint):
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, WAIT_S * 1000)
        self.socket.connect(endpoint)
        self.n = 0

    def ask(self, op, **args):
        self.n += 1
        self.socket.send(msgpack.packb(
            {"v": 1, "id": self.n, "op": op, "args": args}))
        try:
            reply = msgpack.unpackb(self.socket.recv())
        except zmq.Again:
            sys.exit(f"{op}: no reply within {WAIT_S} s")
        if reply["id"] != self.n or not reply["ok"]:
            sys.exit(f"{op}: {reply}")
        return reply["result"]

    def question(self, i):
        """Seconds that a question took whose answer is known."""
        start = time.monotonic()
        hits = self.ask("query", collection="c", text=f"word{i}",
                        mode="lexical", k=3)["hits"]
        took = time.monotonic() - start
        if [h["id"] for h in hits] != [f"d{i}"]:
            sys.exit(f"question {i}: {hits}")
        return took


def under_flood(client, daemon, path, name, idle):
    sender = subprocess.Popen([sys.executable, __file__, path, name],
                              stdout=subprocess.PIPE)
    try:
        if sender.stdout.readline() != b"sending\n":
            sys.exit(f"{name}: the sender did not begin")
        most = 0
        slowest = 0
        n = 0
        until = time.monotonic() + WAIT_S
        # To the end of the flood, and until what it left is worked off.
        while n < MIN_QUERIES or sender.poll() is None:
            slowest = max(slowest, client.question(n % N_DOCUMENTS))
            most = max(most, memory_of(daemon.pid))
            n += 1
            if time.monotonic() > until:
                sys.exit(f"{name}: the flood did not end in {WAIT_S} s")
    finally:
        sender.kill()
        code = sender.wait()
    print(f"{name}: {n} queries, slowest {slowest * 1000:.1f} ms, memory "
          f"{most >> 20} MiB, sender's exit {code}")
    if slowest > SLOWEST_S:
        sys.exit(f"{name}: a query took {slowest:.2f} s")
    if most > idle + MEMORY_BYTES:
        sys.exit(f"{name}: {most >> 20} MiB")
    # Too large by its first bytes: the connection ends. The others end well.
    if code != (3 if name == "one_message" else 0):
        sys.exit(f"{name}: exit code {code} of the sender")


def await_memory(client, daemon, size):
    """The daemon is down to so many bytes, now that the floods are over."""
    until = time.monotonic() + WAIT_S
    while memory_of(daemon.pid) > size:
        if time.monotonic() > until:
            sys.exit(f"{memory_of(daemon.pid) >> 20} MiB are kept")
        client.question(0)


def main():
    build = os.environ["MB_BINARY_DIR"]
    with tempfile.TemporaryDirectory(prefix="mbtest") as folder:
        path = os.path.join(folder, "s")
        log = os.path.join(folder, "log")
        # What asan keeps of freed memory would count as the daemon's.
        env = dict(os.environ, ASAN_OPTIONS=os.environ.get(
            "ASAN_OPTIONS", "") + ":quarantine_size_mb=8")
        with open(log, "w", encoding="utf-8") as f:
            daemon = subprocess.Popen(
                [os.path.join(build, "daemon", "membankd"), "--store",
                 os.path.join(folder, "store"), "--listen", f"ipc://{path}"],
                stdout=f, stderr=f, env=env)
        try:
            until = time.monotonic() + WAIT_S
            while not os.path.exists(path):
                if daemon.poll() is not None or time.monotonic() > until:
                    sys.exit("the daemon did not start")
                time.sleep(0.01)
            client = Client(f"ipc://{path}")
            client.ask("create", name="c", settings={"embedding": "none"})
            client.ask("put", collection="c", documents=[
                {"id": f"d{i}", "text": f"word{i} and more"}
                for i in range(N_DOCUMENTS)])
            idle = memory_of(daemon.pid)
            print(f"memory {idle >> 20} MiB")
            for name in FLOODS:
                under_flood(client, daemon, path, name, idle)
            await_memory(client, daemon, idle + LIMIT)
            server = client.ask("stats")["server"]
            print(f"received {server['bytes_in'] >> 20} MiB, refused "
                  f"{server['refused']}, dropped {server['dropped']}")
            daemon.terminate()
            if daemon.wait(timeout=WAIT_S) != 0:
                sys.exit(f"the daemon ended with {daemon.returncode}")
        finally:
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
            with open(log, encoding="utf-8", errors="replace") as f:
                sys.stdout.write("".join(f.readlines()[-10:]))


if len(sys.argv) > 1:
    send(sys.argv[1], sys.argv[2])
else:
    import msgpack
    import zmq
    main()
