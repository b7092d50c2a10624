#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/protocol_examples.py - the examples of PROTOCOL.md are true.

An example of the document is a request and its reply, each as text and as
bytes. Here: bytes mean what the text says; they are the vectors of
tests/fixtures/wire/protocol.hex, all of them, in order; every operation has an
example that succeeds; and a daemon with an empty store answers the session as
written. Times and sizes differ from run to run, so that of results the keys and
types are compared; errors must be the same, text and all.

    protocol_examples.py --update

makes the bytes and the replies anew: after a change of the protocol, or when a
request was added as text. Read the difference before it is committed."""
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time

import msgpack
import zmq

source = os.environ["MB_SOURCE_DIR"]
build = os.environ["MB_BINARY_DIR"]
DOCUMENT = os.path.join(source, "daemon", "PROTOCOL.md")
VECTORS = os.path.join(source, "tests", "fixtures", "wire", "protocol.hex")
HEAD = """# Messages of PROTOCOL.md: name | bytes. A test compares both files and sends
# the requests, in this order, to a daemon.
"""
# So that the few documents of the session are enough for a fit, and that a
# training ends soon on a busy machine.
OPTIONS = ["--refit-min-segments", "2", "--bank-nice", "0"]
CUT = "(cut)"  # instead of text: the bytes are no message
WIDTH = 140
TIMEOUT_MS = 20000
failures = 0


def fail(what):
    global failures
    failures += 1
    print(what)


# ---- the document ----

class Message:
    def __init__(self):
        self.text = ""
        self.bytes = b""


class Example:
    """What stands below "Example: NAME": text and bytes of the request, of the
    reply. A line of bytes begins with C: or D:, the next ones with blanks."""

    def __init__(self, match):
        self.name = match[1]
        self.span = match.span(2)
        self.request = Message()
        self.reply = Message()
        message = self.request
        for line in match[2].splitlines():
            data = re.fullmatch(r"    (?:C:|D:|  ) ([0-9a-f ]+)", line)
            if data:
                message.bytes += bytes.fromhex(data[1])
                continue
            if message.bytes:
                message = self.reply
            message.text = f"{message.text} {line.strip()}".strip()


def examples_of(document):
    return [Example(m) for m in re.finditer(
        r"^Example: (.+)\n\n((?:    .*\n)+)", document, re.M)]


def value_of(text):
    """JSON, in which h'00ff' stands for bin."""
    def bins(v):
        if isinstance(v, str) and re.fullmatch("h'[0-9a-f]*'", v):
            return bytes.fromhex(v[2:-1])
        if isinstance(v, list):
            return [bins(x) for x in v]
        if isinstance(v, dict):
            return {k: bins(x) for k, x in v.items()}
        return v
    return bins(json.loads(re.sub(r"(?<!\")(h'[0-9a-f]*')", r'"\1"', text)))


def text_of(value):
    text = json.dumps(value, ensure_ascii=False,
                      default=lambda b: f"h'{b.hex()}'")
    return re.sub(r"\"(h'[0-9a-f]*')\"", r"\1", text)


# ---- the two files agree ----

def check_text(example, which, message):
    if message.text == CUT:
        return
    value = msgpack.unpackb(message.bytes)
    if value_of(message.text) != value:
        fail(f"{example.name}, {which}: the text is {message.text}\n"
             f"the bytes are {text_of(value)}")


def check_vectors(examples):
    have = []
    with open(VECTORS, encoding="utf-8") as f:
        for line in f:
            if line.strip() and not line.startswith("#"):
                name, data = line.split("|")
                have.append((name.strip(), bytes.fromhex(data)))
    want = []
    for e in examples:
        want += [(f"{e.name} request", e.request.bytes),
                 (f"{e.name} reply", e.reply.bytes)]
    for name, data in want:
        if (name, data) not in have:
            fail(f"{name}: not in protocol.hex")
    if len(have) != len(want):
        fail(f"protocol.hex has {len(have)} vectors, the document {len(want)}")
    return [e for name, _ in have if name.endswith(" request")
            for e in examples if e.name == name[:-8]]


def check_operations(examples, document):
    """An example that succeeds in the section of each operation."""
    done = {msgpack.unpackb(e.request.bytes)["op"] for e in examples
            if e.request.text != CUT and msgpack.unpackb(e.reply.bytes)["ok"]}
    sections = re.findall(r"^### ([a-z.]+)$", document, re.M)
    if len(sections) < 13:
        fail(f"sections of operations: {sections}")
    for op in sections:
        if op not in done:
            fail(f"{op}: no example")


# ---- a daemon says the same ----

def same_kind(want, got, where):
    """Keys and types agree; what there are many of is judged by the first."""
    if isinstance(want, dict) and isinstance(got, dict):
        # By name of operation: counted when it is over, perhaps after this.
        if where.endswith(".commands"):
            pairs = [(k, k) for k in want if k in got]
        else:
            pairs = [(k, k) for k in want]
            if list(want) != list(got):
                fail(f"{where}: keys {list(want)} are {list(got)} now")
                return
        for a, b in pairs:
            same_kind(want[a], got[b], f"{where}.{a}")
    elif isinstance(want, list) and isinstance(got, list):
        if bool(want) != bool(got):
            fail(f"{where}: {want} is {got} now")
        elif want:
            same_kind(want[0], got[0], f"{where}[0]")
    elif type(want) is not type(got):
        fail(f"{where}: {want} is {got} now")


def start_daemon(folder):
    with open(os.path.join(folder, "log"), "w", encoding="utf-8") as log:
        # By relative paths, so that no folder of a test gets into the replies.
        daemon = subprocess.Popen(
            [os.path.join(build, "daemon", "membankd"), "--store", "store",
             "--listen", f"ipc://{folder}/s", *OPTIONS],
            cwd=folder, stdout=log, stderr=log)
    until = time.monotonic() + 30
    while not os.path.exists(os.path.join(folder, "s")):
        if daemon.poll() is not None or time.monotonic() > until:
            with open(log.name, encoding="utf-8") as f:
                sys.exit(f.read())
        time.sleep(0.01)
    return daemon


def session(examples):
    """The replies of a daemon, in order."""
    with tempfile.TemporaryDirectory(prefix="mbtest") as folder:
        daemon = start_daemon(folder)
        try:
            socket = zmq.Context.instance().socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
            socket.connect(f"ipc://{folder}/s")
            for e in examples:
                socket.send(e.request.bytes)
                yield e, socket.recv()
        finally:
            daemon.terminate()
            daemon.wait(timeout=30)


def check_session(examples):
    for e, got in session(examples):
        want = msgpack.unpackb(e.reply.bytes)
        got = msgpack.unpackb(got)
        if not want["ok"] and want != got:
            fail(f"{e.name}: {want} is {got} now")
        same_kind(want, got, e.name)
        if want["id"] != got["id"] or want["ok"] != got["ok"]:
            fail(f"{e.name}: {want} is {got} now")


# ---- making them anew ----

def printed(message, letter):
    lines = [message.text] if message.text == CUT else textwrap.wrap(
        message.text, WIDTH, break_long_words=False, break_on_hyphens=False)
    lines = ["    " + line for line in lines]
    for at in range(0, len(message.bytes), 32):
        lines.append(f"    {letter if at == 0 else '  '} "
                     f"{message.bytes[at:at + 32].hex(' ')}")
    return "\n".join(lines) + "\n"


def number_of(example):
    if example.request.text == CUT:
        return msgpack.unpackb(example.reply.bytes)["id"]
    return value_of(example.request.text)["id"]


def update(document, examples):
    """Requests from their text, replies from a daemon."""
    examples = sorted(examples, key=number_of)
    for e in examples:
        if e.request.text != CUT:
            e.request.bytes = msgpack.packb(value_of(e.request.text))
    vectors = HEAD
    for e, reply in session(examples):
        e.reply.bytes = reply
        e.reply.text = text_of(msgpack.unpackb(reply))
        vectors += (f"{e.name} request | {e.request.bytes.hex(' ')}\n"
                    f"{e.name} reply | {e.reply.bytes.hex(' ')}\n")
    for e in sorted(examples, key=lambda e: -e.span[0]):
        document = (document[:e.span[0]] + printed(e.request, "C:") +
                    printed(e.reply, "D:") + document[e.span[1]:])
    for path, text in ((VECTORS, vectors), (DOCUMENT, document)):
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)


def main():
    with open(DOCUMENT, encoding="utf-8") as f:
        document = f.read()
    examples = examples_of(document)
    if sys.argv[1:] == ["--update"]:
        update(document, examples)
        return
    for e in examples:
        check_text(e, "request", e.request)
        check_text(e, "reply", e.reply)
    examples = check_vectors(examples)
    check_operations(examples, document)
    check_session(examples)
    if failures:
        sys.exit(f"{failures} failures")
    print(f"{len(examples)} examples")


main()
