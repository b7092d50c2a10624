#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/context.py - long contexts of a daemon.

Scores are compared token by token and must be equal, bit for bit: of a context
that was read in one go, in pieces, after a restart, after kill -9 amid an
append, through a fork, behind a cut. ctest: timeout=600"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.environ["MB_SOURCE_DIR"], "tests",
                                "support"))
from session import Client, Daemon, build, check

source = os.environ["MB_SOURCE_DIR"]
ANCHOR = os.path.join(source, "model", "weights", "anchor.gguf")
BLOCK = 63
SEGMENT = 4 * BLOCK
folder = tempfile.mkdtemp(prefix="membank-context-")
QUESTION = "The daemon keeps what it was given, and says so."


def words(n, seed=1):
    """A text of n words, always the same."""
    text = open(os.path.join(source, "README.md"), encoding="utf-8").read()
    text += open(os.path.join(source, "CONTRIBUTING.md"),
                 encoding="utf-8").read()
    pool = text.split()
    out = []
    state = seed
    for i in range(n):
        state = (state * 1103515245 + 12345) % 2**31
        out.append(pool[(i + (state >> 16) % 7) % len(pool)])
    return " ".join(out)


def error(client, op, **args):
    reply = client.ask(op, **args)[1]
    check(not reply["ok"], op, reply)
    return reply["error"]


def score(client, name, text=QUESTION, **args):
    return client.result("context.score", name=name, text=text,
                         per_token=True, **args)["per_token"]


def info(client, name):
    return client.result("context.list", name=name)["contexts"][0]


def verify(client):
    result = client.result("verify")
    check(result["broken"] == 0, "verify", result)


def open_and_append(client, name, texts, **args):
    client.result("context.open", name=name, **args)
    for text in texts:
        result = client.result("context.append", name=name, text=text)
    return result


def test_identity(daemon):
    """In one go, in pieces, through a restart: the same numbers."""
    client = Client(daemon)
    pieces = [words(150, seed) for seed in range(8)]
    made = client.result("context.open", name="whole")
    check(made["created"] and made["context"]["tokens"] == 0, made)
    check(not client.result("context.open", name="whole")["created"])
    for piece in pieces:
        client.result("context.append", name="whole", text=piece)
    before = info(client, "whole")
    check(before["blocks"] >= 12 and before["blocks"] % 4 == 0, before)
    a = score(client, "whole")
    check(a == score(client, "whole"), "a score changes nothing")
    check(info(client, "whole") == before, "nor does the store")

    # What is read is what counts, not how it was cut.
    open_and_append(client, "pieces", pieces[:3])
    client.result("context.close", name="pieces")
    for piece in pieces[3:]:
        client.result("context.append", name="pieces", text=piece)
        client.result("context.close", name="pieces")
    check(info(client, "pieces")["tokens"] == before["tokens"])
    check(a == score(client, "pieces"), "closed in between")

    # keep: a text that is scored becomes part of it.
    open_and_append(client, "kept", pieces[:5])
    for piece in pieces[5:]:
        check(len(score(client, "kept", piece, keep=True)) > 0)
    check(info(client, "kept")["tokens"] == before["tokens"])
    check(a == score(client, "kept"), "kept scores")
    for name in ("pieces", "kept"):
        client.result("context.delete", name=name)
    verify(client)
    return a, before


def test_restart(daemon, a, before):
    daemon.stop()
    daemon = Daemon(folder)
    client = Client(daemon)
    check(info(client, "whole") == before)
    check(a == score(client, "whole"), "after a restart")
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    daemon = Daemon(folder)
    client = Client(daemon)
    check(a == score(client, "whole"), "after kill -9")
    return daemon


def test_fork_and_truncate(client, a, before):
    n = before["tokens"]
    for at in (0, 1, BLOCK, SEGMENT - 1, SEGMENT, SEGMENT + 1, 700, n - 1, n):
        client.result("context.fork", name="whole", to="fork", at=at)
        check(info(client, "fork")["tokens"] == at, at)
        client.result("context.fork", name="whole", to="cut")
        client.result("context.truncate", name="cut", at=at)
        check(info(client, "cut")["tokens"] == at, at)
        x, y = score(client, "fork"), score(client, "cut")
        check(x == y and len(x) > 0, at, x, y)
        check(at < n or x == a, at)
        # Both go on alike, and apart from where they came from.
        for name in ("fork", "cut"):
            client.result("context.append", name=name, text=words(300, 9))
        check(score(client, "fork") == score(client, "cut"), at)
        verify(client)
        for name in ("fork", "cut"):
            client.result("context.delete", name=name)
    check(a == score(client, "whole"), "forks leave it as it was")
    # A shared beginning is on disk once; deleting the origin keeps the fork.
    total = client.result("context.list")["bytes"]
    client.result("context.fork", name="whole", to="fork")
    check(client.result("context.list")["bytes"] == total)
    client.result("context.delete", name="whole")
    check(a == score(client, "fork"), "the origin is gone")
    client.result("context.truncate", name="fork", at=0)
    check(client.result("context.list")["bytes"] == 0)
    client.result("context.delete", name="fork")
    check(error(client, "context.score", name="fork", text="x")["code"] ==
          "not_found")
    verify(client)


def test_generate(client):
    open_and_append(client, "g", [words(600, 3)])
    before = info(client, "g")
    plain = {"text": "The store", "max_tokens": 300, "temperature": 0}
    one = client.result("context.generate", name="g", **plain)
    check(one["tokens"] == 300 and one["finish"] == "length", one)
    check(one == {**client.result("context.generate", name="g", **plain),
                  "took_us": one["took_us"], "seed": one["seed"]})
    check(info(client, "g") == before, "without keep nothing changes")
    check(any(b["hits"] > 0 and b["text"] for b in one["used"]["blocks"]), one)
    # A stream's parts are the text.
    parts, last = client.ask("context.generate", name="g", stream=True,
                             **plain)
    check("".join(p["text"] for p in parts) == one["text"])
    # Kept, it goes on where it was.
    kept = client.result("context.generate", name="g", keep=True,
                         **{**plain, "max_tokens": 150})
    check(one["text"].startswith(kept["text"]), kept)
    check(kept["position"] == before["tokens"] + kept["prompt_tokens"] + 150,
          kept)
    client.result("context.close", name="g")
    rest = client.result("context.generate", name="g", max_tokens=150,
                         temperature=0)
    check(kept["text"] + rest["text"] == one["text"], kept, rest, one)
    check(info(client, "g")["tokens"] == kept["position"])
    check(error(client, "context.generate", name="g", text="x",
                at=1)["code"] == "mismatch")
    client.result("context.open", name="empty")
    # An empty one begins as a text does.
    check(client.result("context.generate", name="empty",
                        max_tokens=3)["tokens"] == 3)
    check(info(client, "empty")["tokens"] == 0)
    for name in ("g", "empty"):
        client.result("context.delete", name=name)


def dump(*args):
    return subprocess.run(
        [os.path.join(build, "tools", "membank-dump"), "--store",
         os.path.join(folder, "store"), *args], check=True,
        capture_output=True, text=True).stdout


def wait_for_trace(name):
    """What is shown of a context once its trace, which is written behind the
    reply, is there."""
    end = time.monotonic() + 20
    while True:
        one = json.loads(dump("--json", "context", name))
        if "retrieved" in one or time.monotonic() > end:
            return one
        time.sleep(0.01)


def test_dump(client):
    """What a tool shows of a store that is being served."""
    open_and_append(client, "shown", [words(600, 4)])
    check("no blocks were retrieved" in dump("context", "shown"))
    out = client.result("context.generate", name="shown", max_tokens=64,
                        temperature=0)
    here = info(client, "shown")
    one = wait_for_trace("shown")
    check(one["tokens"] == here["tokens"] and one["bytes"] == here["bytes"] and
          one["blocks"] == here["blocks"], one, here)
    hits = [0] * one["blocks"]
    for step, block, count in one["retrieved"]["picks"]:
        check(step < 65 and count > 0, step, count)
        hits[block] += count
    for block in out["used"]["blocks"]:
        check(hits[block["block"]] == block["hits"], block, hits)
    text = dump("context", "shown")
    check("retrieved over the last generation: 64 tokens" in text, text)
    check(any("@" in line for line in text.splitlines()), text)
    check("shown" in dump("contexts"))
    check(json.loads(dump("--json", "contexts").splitlines()[0])["name"] ==
          "shown")
    client.result("context.delete", name="shown")


def test_example(daemon):
    """The example, with a book so short that all its blocks come back."""
    book = os.path.join(folder, "book.txt")
    with open(book, "w", encoding="utf-8") as f:
        f.write(words(160, 6))
    command = [sys.executable, os.path.join(source, "client", "examples",
                                            "context.py"), book,
               "--endpoint", daemon.endpoint, "--name", "example",
               "--segment", "1", "--k", "16"]
    for _ in range(2):  # the second time it is there already
        out = subprocess.run(command, check=True, capture_output=True,
                             text=True).stdout
        check(out.splitlines()[-1] == "found", out)
        check(sum(line.startswith("*") for line in out.splitlines()) in (1, 2),
              out)
    out = subprocess.run([*command, "--sentence", "It is not in there."],
                         check=True, capture_output=True, text=True).stdout
    check(out.splitlines()[-1] == "not found", out)
    Client(daemon).result("context.delete", name="example")


def test_settings(client):
    settings = {"k": 2, "segment": 2, "kv": "q8_0"}
    client.result("context.open", name="s", settings=settings)
    check(info(client, "s")["settings"]["k"] == 2)
    fails = error(client, "context.open", name="s", settings={"k": 1})
    check(fails["code"] == "mismatch", fails)
    fails = error(client, "context.open", name="t", settings={"kv": "q2"})
    check(fails["code"] == "bad_arg" and "f16" in fails["message"], fails)
    check(error(client, "context.open", name="t", settings={"k": 99})["code"]
          == "bad_arg")
    fails = error(client, "context.open", name="t", settings={"tail": True})
    check(fails["code"] == "bad_arg" and "tail" in fails["message"], fails)
    # A tail is another reading of the same text, and the same after a close.
    scores = []
    for tail in (False, "landmark", "moments"):
        open_and_append(client, "t", [words(500)],
                        settings={"k": 1, "tail": tail})
        scores.append(score(client, "t"))
        client.result("context.close", name="t")
        check(score(client, "t") == scores[-1], tail)
        client.result("context.delete", name="t")
    check(scores[0] != scores[1] != scores[2] != scores[0], scores)
    check(error(client, "context.open", name="t", create=False)["code"] ==
          "not_found")
    check(error(client, "context.open", name="")["code"] == "bad_arg")
    client.result("context.append", name="s", text=words(300))
    a = score(client, "s")
    client.result("context.close", name="s")
    check(a == score(client, "s"), "int8 through a close")
    client.result("context.delete", name="s")


def test_quota(client):
    block = 270000
    client.result("context.open", name="q", quota=7 * block)
    fails = error(client, "context.append", name="q", text=words(1500))
    check(fails["code"] == "too_large" and "quota" in fails["message"] and
          '"q"' in fails["message"], fails)
    here = info(client, "q")
    check(here["blocks"] == 4 and here["bytes"] <= 7 * block, here)
    # What the message says was appended is there, and the window is full.
    check(here["tokens"] >= 2 * SEGMENT, here)
    a = score(client, "q")
    client.result("context.close", name="q")
    check(a == score(client, "q"), "a full window, kept")
    client.result("context.open", name="q", quota=0)
    client.result("context.append", name="q", text=words(600))
    check(info(client, "q")["blocks"] > 4)
    client.result("context.delete", name="q")


def test_total(folder_of_it):
    """All contexts together: a setting; and few bytes of memory."""
    daemon = Daemon(folder_of_it, "--context-bytes", "3M",
                    "--context-memory", "3M")
    client = Client(daemon)
    open_and_append(client, "a", [words(350)])
    a = score(client, "a")
    fails = error(client, "context.append", name="a", text=words(2000))
    check(fails["code"] == "too_large" and "context_bytes" in
          fails["message"], fails)
    client.result("context.truncate", name="a", at=400)
    b = score(client, "a")
    # More than memory has room for: some are closed, none is lost.
    for i in range(4):
        open_and_append(client, f"small {i}", [words(40, i)])
    stats = client.result("stats")["contexts"]
    check(stats["bytes"] <= 3 * 2**20 and stats["evicted"] > 0, stats)
    check(stats["max_bytes"] == 3 * 2**20, stats)
    check(b == score(client, "a"), a)
    check(len(client.result("context.list")["contexts"]) == 5)
    daemon.stop()


def test_memory(folder_of_it):
    """Contexts in use count as well: of many at a time some are refused, to be
    asked again, none is lost."""
    daemon = Daemon(folder_of_it, "--context-memory", "3M")
    client = Client(daemon)
    names = [f"m{i}" for i in range(6)]
    for name in names:  # one by one all have room
        open_and_append(client, name, [words(20)])
    numbers = [client.send("context.generate", name=name, max_tokens=250,
                           temperature=0) for name in names]
    replies = {}
    while len(replies) < len(numbers):
        reply = client.receive()
        replies[reply["id"]] = reply
    refused = [n for n in numbers if not replies[n]["ok"]]
    check(0 < len(refused) < len(names), replies)
    for n in refused:
        fails = replies[n]["error"]
        check(fails["code"] == "busy" and fails["retry"] and
              "context_memory" in fails["message"], fails)
    texts = {replies[n]["result"]["text"] for n in numbers if n not in refused}
    for name in names:
        texts.add(client.result("context.generate", name=name, max_tokens=250,
                                temperature=0)["text"])
    check(len(texts) == 1, texts)
    stats = client.result("stats")["contexts"]
    check(stats["bytes"] <= stats["max_bytes"], stats)
    verify(client)
    daemon.stop()


def test_side_by_side(client):
    """Several at once, and plain requests between: as if alone."""
    names = [f"side {i}" for i in range(4)]
    texts = [words(500, 20 + i) for i in range(4)]
    for name in names:
        client.result("context.open", name=name)
    sent = {}
    for name, text in zip(names, texts):
        sent[client.send("context.append", name=name, text=text)] = name
    sent[client.send("generate", prompt="The store", max_tokens=30,
                     temperature=0)] = "plain"
    # Two more of one context: they wait for one another.
    for _ in range(2):
        sent[client.send("context.score", name=names[0], text=QUESTION)] = ""
    for _ in range(len(sent)):
        reply = client.receive()
        check(reply["ok"] and reply["id"] in sent, reply)
        del sent[reply["id"]]
    for name, text in zip(names, texts):
        open_and_append(client, "alone", [text])
        check(score(client, name) == score(client, "alone"), name)
        client.result("context.delete", name="alone")
        client.result("context.delete", name=name)
    verify(client)


def test_at(client):
    open_and_append(client, "at", [words(20)])
    n = info(client, "at")["tokens"]
    client.result("context.append", name="at", text="once", at=n)
    fails = error(client, "context.append", name="at", text="once", at=n)
    check(fails["code"] == "mismatch", fails)
    check(error(client, "context.truncate", name="at", at=10**6)["code"] ==
          "bad_arg")
    check(error(client, "context.fork", name="at", to="at")["code"] ==
          "exists")
    client.result("context.append", name="at", text="")
    client.result("context.delete", name="at")


def test_kill_amid_append(daemon):
    """What a context has after kill -9 is a beginning of its text, and with the
    rest appended it is what it would have been."""
    client = Client(daemon)
    text = words(3000, 5)
    open_and_append(client, "whole", [text])
    a = score(client, "whole")
    n = info(client, "whole")["tokens"]
    client.result("context.open", name="killed")
    number = client.send("context.append", name="killed", text=text)
    looker = Client(daemon)
    until = time.monotonic() + 60
    while info(looker, "killed")["blocks"] < 8:
        check(time.monotonic() < until, "it appends nothing")
        time.sleep(0.002)
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    daemon = Daemon(folder)
    client = Client(daemon)
    here = info(client, "killed")
    check(number and 8 * BLOCK <= here["tokens"] < n, here, n)
    check(here["tokens"] % SEGMENT == 0, here)
    # It is the same beginning that a fork has.
    client.result("context.fork", name="whole", to="same", at=here["tokens"])
    check(score(client, "killed") == score(client, "same"), here)
    # Go on from there, as often as it takes.
    client.result("context.truncate", name="killed", at=0)
    client.result("context.append", name="killed", text=text)
    check(score(client, "killed") == a, "appended anew")
    for name in ("same", "killed", "whole"):
        client.result("context.delete", name=name)
    verify(client)
    return daemon


def test_other_weights(daemon):
    client = Client(daemon)
    open_and_append(client, "mine", [words(400)])
    a = score(client, "mine")
    daemon.stop()
    other = os.path.join(folder, "other.gguf")
    weights = open(ANCHOR, "rb").read()
    name = b"membank anchor"
    check(weights.count(name) == 1, "name of the anchor")
    with open(other, "wb") as out:
        out.write(weights.replace(name, name.upper()))
    daemon = Daemon(folder, "--model", other)
    client = Client(daemon)
    for op, args in (("score", {"text": "x"}), ("append", {"text": "x"}),
                     ("generate", {}), ("open", {}), ("truncate", {"at": 1}),
                     ("fork", {"to": "x"})):
        fails = error(client, "context." + op, name="mine", **args)
        check(fails["code"] == "mismatch" and "other.gguf" in
              fails["message"], fails)
    check(info(client, "mine")["dormant"])
    open_and_append(client, "theirs", ["a text of another model"])
    check(not info(client, "theirs")["dormant"])
    daemon.stop()
    daemon = Daemon(folder)
    client = Client(daemon)
    check(a == score(client, "mine"), "back with its weights")
    check(info(client, "theirs")["dormant"])
    client.result("context.delete", name="theirs")  # dormant ones go like any
    client.result("context.delete", name="mine")
    return daemon


def test_delete_leaves_nothing(client):
    """Neither its name nor its blocks stay in the file."""
    data = os.path.join(folder, "store", "data.mdb")
    client.result("context.open", name="rarest-of-names")
    client.result("context.append", name="rarest-of-names",
                  text=words(1200, 8))
    check(b"rarest-of-names" in open(data, "rb").read())
    client.result("context.delete", name="rarest-of-names")
    until = time.monotonic() + 60
    while client.result("stats")["scrub_pending"]:
        check(time.monotonic() < until, "scrub")
        time.sleep(0.05)
    check(client.result("context.list") == {"bytes": 0, "contexts": []})
    tables = client.result("stats")["tables"]
    check(tables["blocks"]["rows"] == 0, tables)
    check(tables["contexts"]["rows"] == 0, tables)
    bytes_left = open(data, "rb").read()
    check(b"rarest-of-names" not in bytes_left, "its name")
    used = client.result("stats")["store"]["used_bytes"]
    nonzero = sum(1 for at in range(0, len(bytes_left), 4096)
                  if bytes_left[at:at + 4096].strip(b"\0"))
    # Pages with anything in them: those in use, and the free list's.
    check(nonzero * 4096 <= used + 64 * 4096, nonzero, used)
    verify(client)


def main():
    daemon = Daemon(folder)
    a, before = test_identity(daemon)
    daemon = test_restart(daemon, a, before)
    client = Client(daemon)
    test_fork_and_truncate(client, a, before)
    test_generate(client)
    test_dump(client)
    test_example(daemon)
    test_settings(client)
    test_quota(client)
    test_at(client)
    test_side_by_side(client)
    daemon = test_kill_amid_append(daemon)
    daemon = test_other_weights(daemon)
    test_delete_leaves_nothing(Client(daemon))
    daemon.stop()
    small = tempfile.mkdtemp(prefix="membank-context-")
    test_total(small)
    shutil.rmtree(small)
    small = tempfile.mkdtemp(prefix="membank-context-")
    test_memory(small)
    shutil.rmtree(small)
    shutil.rmtree(folder)


main()
