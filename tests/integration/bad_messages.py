#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/bad_messages.py - what is no request gets an error, and the
daemon lives on.

Every line of tests/fixtures/wire/bad.hex goes to a real daemon twice: as a
whole message, and as the value of an argument of an otherwise good request.
Each must be answered with an error of the protocol, and a ping after it must
work. So must envelopes that are wrong, frames that are not there or too many,
and all good values of values.hex where a request is expected."""
import os
import subprocess
import sys
import tempfile
import time

import msgpack
import zmq

source = os.environ["MB_SOURCE_DIR"]
build = os.environ["MB_BINARY_DIR"]
CODES = {"bad_message", "bad_text", "too_large"}
TIMEOUT_MS = 20000


def vectors(name):
    path = os.path.join(source, "tests", "fixtures", "wire", name)
    with open(path, encoding="utf-8") as f:
        for line in f:
            if line.strip() and not line.startswith("#"):
                columns = [c.strip() for c in line.split("|")]
                yield columns[0], bytes.fromhex(columns[1]), columns[2]


def start_daemon(folder):
    endpoint = f"ipc://{folder}/s"
    log = open(os.path.join(folder, "log"), "w", encoding="utf-8")
    daemon = subprocess.Popen(
        [os.path.join(build, "daemon", "membankd"), "--store",
         os.path.join(folder, "store"), "--listen", endpoint],
        stdout=log, stderr=log)
    until = time.monotonic() + 30
    while not os.path.exists(os.path.join(folder, "s")):
        if daemon.poll() is not None or time.monotonic() > until:
            sys.exit(open(log.name, encoding="utf-8").read())
        time.sleep(0.01)
    return daemon, endpoint


class Client:
    """A DEALER socket; replies are read whole and must be of the protocol."""

    def __init__(self, endpoint):
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        self.socket.connect(endpoint)
        self.n = 0

    def send(self, *frames):
        self.socket.send_multipart(frames)

    def receive(self, what):
        try:
            frames = self.socket.recv_multipart()
        except zmq.Again:
            sys.exit(f"{what}: no reply")
        reply = msgpack.unpackb(frames[-1])
        if reply.get("v") != 1 or "id" not in reply or "ok" not in reply:
            sys.exit(f"{what}: the reply is {reply}")
        return reply

    def refused(self, what, codes, *frames):
        """Send, expect an error of one of these codes."""
        self.send(*frames)
        reply = self.receive(what)
        error = reply.get("error", {})
        if reply["ok"] or error.get("code") not in codes or not error.get(
                "message") or not isinstance(error.get("retry"), bool):
            sys.exit(f"{what}: wanted {codes}, got {reply}")
        self.ping(what)
        return reply

    def ping(self, what):
        self.n += 1
        self.send(msgpack.packb({"v": 1, "id": self.n, "op": "ping"}))
        reply = self.receive(f"ping after {what}")
        if not reply["ok"] or reply["id"] != self.n:
            sys.exit(f"ping after {what}: {reply}")


def within_request(value):
    """A good request but for the value of one argument."""
    return (b"\x84\xa1v\x01\xa2id\x07\xa2op\xa4ping\xa4args\x81\xa1x" + value)


def check_table(client):
    n = 0
    for name, data, _ in vectors("bad.hex"):
        if data:  # an empty frame could be a delimiter
            client.refused(name, CODES, data)
        # Bad UTF-8 in a value is for the operation to judge: this one takes
        # no argument of that name. Bytes left over are args of the map no more.
        reply = client.refused(f"{name}, inside", CODES | {"bad_arg"},
                               within_request(data))
        if reply["id"] not in (7, None):
            sys.exit(f"{name}, inside: id {reply['id']}")
        n += 1
    return n


def check_values(client):
    """Good msgpack that is no request."""
    for name, data, _ in vectors("values.hex"):
        if not name.startswith("request"):
            client.refused(name, {"bad_message", "bad_version", "bad_arg"},
                           data)


def check_envelopes(client):
    pack = msgpack.packb
    good = {"v": 1, "id": 1, "op": "ping", "args": {}}
    cases = [
        ("no version", {"id": 1, "op": "ping"}, "bad_message"),
        ("version of another type", dict(good, v="1"), "bad_message"),
        ("version 2", dict(good, v=2), "bad_version"),
        ("no op", {"v": 1, "id": 1}, None),
        ("op of another type", dict(good, op=7), None),
        ("op nobody knows", dict(good, op="pong"), "unknown_op"),
        ("training of nothing", dict(good, op="bank.train",
                                     args={"collection": "nowhere"}),
         "not_found"),
        ("args of another type", dict(good, args=[]), None),
    ]
    for name, message, code in cases:
        codes = {code} if code else {"bad_message", "bad_arg"}
        reply = client.refused(name, codes, pack(message))
        if reply["id"] != 1:
            sys.exit(f"{name}: id {reply['id']}")
    check_model_arguments(client)
    # Any id comes back as it was.
    for name in ("text", 2**64 - 1, -1, None, [1, {"a": b"\x00"}], 0.5):
        client.send(pack(dict(good, id=name)))
        reply = client.receive(f"id {name}")
        if not reply["ok"] or reply["id"] != name:
            sys.exit(f"id {name}: {reply}")


def check_model_arguments(client):
    """What generate and score are told before the model is asked."""
    prompt = {"prompt": "x"}
    cases = [
        ("generate", {}, "bad_arg"),
        ("generate", {"prompt": 7}, "bad_arg"),
        ("generate", {"prompt": "x", "max_tokens": 0}, "bad_arg"),
        ("generate", {"prompt": "x", "temperature": -1}, "bad_arg"),
        ("generate", {"prompt": "x", "temperature": "hot"}, "bad_arg"),
        ("generate", {"prompt": "x", "temperature": float("nan")}, "bad_arg"),
        ("generate", {"prompt": "x", "top_k": -1}, "bad_arg"),
        ("generate", {"prompt": "x", "top_p": 1.5}, "bad_arg"),
        ("generate", {"prompt": "x", "min_p": 2}, "bad_arg"),
        ("generate", {"prompt": "x", "repeat_penalty": 0}, "bad_arg"),
        ("generate", {"prompt": "x", "repeat_window": 5000}, "bad_arg"),
        ("generate", {"prompt": "x", "seed": -1}, "bad_arg"),
        ("generate", {"prompt": "x", "stop": [""]}, "bad_arg"),
        ("generate", {"prompt": "x", "stop": [7]}, "bad_arg"),
        ("generate", {"prompt": "x", "stop": ["a"] * 17}, "too_large"),
        ("generate", {"prompt": "x", "stop": "a" * 300}, "bad_arg"),
        ("generate", {"prompt": "x", "stream": 1}, "bad_arg"),
        ("generate", {"prompt": "a " * 5000}, "too_large"),
        ("generate", {"prompt": b"x"}, "bad_arg"),
        ("generate", {"prompt": "x", "messages": []}, "bad_arg"),
        ("generate", {"messages": []}, "bad_arg"),
        ("generate", {"messages": [7]}, "bad_arg"),
        ("generate", {"messages": [{"role": "user"}]}, "bad_arg"),
        ("generate", {"messages": [{"role": "system", "content": "x"}]},
         "bad_arg"),
        # The bundled model is none for conversations.
        ("generate", {"messages": [{"role": "user", "content": "x"}]},
         "not_implemented"),
        ("generate", dict(prompt, memory=1), "bad_arg"),
        ("generate", dict(prompt, memory={"retrieve": 1}), "bad_arg"),
        ("generate", dict(prompt, memory={"retrieve": -1}), "bad_arg"),
        ("generate", dict(prompt, memory={"retrieve": 100000}), "too_large"),
        ("generate", dict(prompt, memory={"bank": True}), "bad_arg"),
        ("generate", dict(prompt, collection="nowhere",
                          memory={"bank": True}), "not_found"),
        ("generate", dict(prompt, memory={"hmt": True}), "not_implemented"),
        ("generate", dict(prompt, memory={"mode": "fast"}), "bad_arg"),
        ("generate", dict(prompt, collection="nowhere",
                          memory={"retrieve": 1}), "not_found"),
        ("score", {}, "bad_arg"),
        ("score", {"text": ["x"]}, "bad_arg"),
        ("score", {"text": "x", "stride": 0}, "bad_arg"),
        ("score", {"text": "x", "stride": 100000}, "bad_arg"),
        ("score", {"text": "x", "context": "y" * 5000000}, "too_large"),
    ]
    for op, args, code in cases:
        client.refused(f"{op} {str(args)[:60]}", {code}, msgpack.packb(
            {"v": 1, "id": 1, "op": op, "args": args}))


def check_sockets(endpoint):
    """REQ, DEALER with a delimiter, DEALER without: replies come alike."""
    context = zmq.Context.instance()
    request = msgpack.packb({"v": 1, "id": 3, "op": "ping"})
    for kind, sent, wanted in [(zmq.REQ, [request], 1),
                               (zmq.DEALER, [b"", request], 2),
                               (zmq.DEALER, [request], 1)]:
        socket = context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        socket.connect(endpoint)
        socket.send_multipart(sent)
        frames = socket.recv_multipart()
        if len(frames) != wanted or not msgpack.unpackb(frames[-1])["ok"]:
            sys.exit(f"{kind} {sent}: {frames}")
        socket.close()


def check_frames(endpoint):
    """Messages that are no request at all; they may be dropped in silence, but
    a client that sends them afterwards must be served as before."""
    client = Client(endpoint)
    for frames in ([b""], [b"", b""], [b"", b"", b""], [b"x" * 200, b"y"],
                   [b"a"] * 50, [b"x" * 5000, b"", b"z"]):
        client.send(*frames)
        client.n += 1
        client.send(msgpack.packb({"v": 1, "id": client.n, "op": "ping"}))
        while True:
            reply = client.receive(f"frames {[len(f) for f in frames]}")
            if reply["id"] == client.n:
                break
        if not reply["ok"]:
            sys.exit(f"frames {frames}: {reply}")


def main():
    with tempfile.TemporaryDirectory(prefix="mbtest") as folder:
        daemon, endpoint = start_daemon(folder)
        try:
            client = Client(endpoint)
            print(f"bad.hex: {check_table(client)}")
            check_values(client)
            check_envelopes(client)
            check_sockets(endpoint)
            check_frames(endpoint)
            if daemon.poll() is not None:
                sys.exit(f"the daemon ended with {daemon.returncode}")
        finally:
            daemon.terminate()
            daemon.wait(timeout=30)
        if daemon.returncode != 0:
            sys.exit(f"the daemon ended with {daemon.returncode}")


main()
