#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/bank_train.py - a memory bank trained by the daemon.

Whatever happens on the way (a budget, a pause, a restart, kill -9, a deletion),
the bank ends up as one that was trained at a stretch, to the bit.
ctest: timeout=600"""
import os
import shutil
import sys
import tempfile

sys.path.insert(0, os.path.join(os.environ["MB_SOURCE_DIR"], "tests",
                                "support"))
from bankstore import documents, dump, hashes, make, make_model, nodes, score
from session import Client, Daemon, check, wait_for

folder = tempfile.mkdtemp(prefix="membank-bank-train-")
MODEL = os.path.join(folder, "small.gguf")
OPTIONS = ["--bank-checkpoint", "1", "--bank-nice", "0"]


def start(place):
    daemon = Daemon(place, "--model", MODEL, *OPTIONS)
    return daemon, Client(daemon)


def fresh(name, **settings):
    place = os.path.join(folder, name)
    return (place, *make(place, MODEL, *OPTIONS, **settings))


def train(client, **args):
    return client.result("bank.train", collection="c", wait=True, **args)


def training(client):
    return client.result("bank.status", collection="c")["training"]


def steps(client):
    now = training(client)
    return now["step"] if now else 0


def scores(client):
    return [score(client, d["text"], bank=True)["per_token"]
            for d in documents()[:12]]


def at_a_stretch():
    """The bank that all others are compared with, and its scores."""
    _, daemon, client = fresh("whole")
    check(client.error("bank.pause", collection="c")["code"] == "not_found")
    done = train(client)
    check(done["finished"] and done["done"] == done["subtrees"] > 0, done)
    check(done["tokens"] > 0, done)
    job = client.result("jobs")["jobs"][0]
    check(job["kind"] == "train" and job["state"] == "done", job)
    status = nodes(client)
    check(status["states"]["ready"] == status["nodes"], status["states"])
    check(status["helps"] and status["training"] is None, status)
    check(train(client)["tokens"] == 0, "nothing is left to be trained")
    got = scores(client)
    used = client.result("bank.path", collection="c",
                         text=documents()[0]["text"])["path"][0]["node"]
    wait_for("the time of use", lambda: client.result(
        "bank.path", collection="c",
        text=documents()[0]["text"])["path"][0]["node"]["used_ms"] > 0)
    check(used["attached"], used)
    daemon.stop()
    return status, got


def test_budget_and_pause(whole):
    place, daemon, client = fresh("parts")
    part = train(client, tokens=1)
    check(not part["finished"] and part["tokens"] > 1, part)
    check(training(client) is None, "the budget is used up")
    client.result("bank.train", collection="c")
    check(client.result("bank.pause", collection="c")["paused"])
    check(training(client)["paused"], training(client))
    wait_for("the job to end", lambda: training(client)["job"] == 0)
    tokens = client.result("bank.status", collection="c")["trained_segments"]
    daemon.stop()
    daemon, client = start(place)
    check(training(client)["paused"], "a pause outlives the daemon")
    client.result("bank.disable", collection="c", node=1)
    client.result("bank.pause", collection="c", pause=False)
    wait_for("the end", lambda: training(client) is None, 200)
    status = nodes(client)
    check(status["node_list"][0]["disabled"], "training undoes no wish")
    check(tokens <= status["trained_segments"], status)
    client.result("bank.disable", collection="c", node=1, disable=False)
    compare(client, whole)
    daemon.stop()


def test_half(whole):
    """A deletion spoils what is half trained: a purge leaves nothing of it."""
    _, daemon, client = fresh("half")
    train(client, tokens=1)
    check(rows(client) > 0 and
          nodes(client)["states"]["training"] > 0, "half trained")
    client.result("delete", collection="c", ids=["d4"])
    done = client.result("bank.purge", collection="c", wait=True)
    check(done["finished"] and done["tokens"] == 0, done)
    check(rows(client) == 0, "states are erased")
    states = nodes(client)["states"]
    check(states["fresh"] == sum(states[s] for s in (
        "fresh", "training", "ready", "stale")), states)
    client.result("put", collection="c", wait="searchable",
                  documents=[d for d in documents() if d["id"] == "d4"])
    train(client)
    compare(client, whole)
    daemon.stop()


def rows(client):
    return client.result("stats")["tables"]["bank_training"]["rows"]


def test_gone():
    """The bank is replaced, taken away, dropped with its collection: training
    ends, and the daemon goes on."""
    _, daemon, client = fresh("gone")
    for op, args in (("bank.build", {"collection": "c"}),
                     ("bank.reset", {"collection": "c"}),
                     ("drop", {"name": "c"})):
        client.result("bank.train", collection="c")
        wait_for("a step", lambda: steps(client) > 0 or
                 training(client) is None)
        client.result(op, **args)
        wait_for("the end of it", lambda: all(
            job["state"] not in ("running", "waiting")
            for job in client.result("jobs")["jobs"]))
        if op == "bank.build":
            check(training(client) is None, "it was of the bank before")
        if op == "bank.reset":
            client.result("bank.build", collection="c",
                          settings={"fan_out": 2, "levels": 2})
    check(client.error("bank.train", collection="c")["code"] == "not_found")
    check(client.result("verify")["broken"] == 0, "verify")
    daemon.stop()


def test_kill(whole):
    # Two threads make the same bits as one.
    OPTIONS.extend(["--bank-threads", "2"])
    place, daemon, client = fresh("killed")
    client.result("bank.train", collection="c", seconds=3600)
    for at in (1, 3):
        wait_for("some steps", lambda: steps(client) >= at
                 or training(client) is None)
        daemon.kill()
        daemon, client = start(place)
        check(client.result("verify")["broken"] == 0, "verify")
    wait_for("the end", lambda: training(client) is None, 200)
    compare(client, whole)
    daemon.stop()


def compare(client, whole):
    status = nodes(client)
    check(status == whole[0], "as trained at a stretch", status, whole[0])
    check(scores(client) == whole[1], "the same bits")


def test_purge():
    """Blocks that saw a document become those of a bank that never did."""
    place, daemon, client = fresh("forgets")
    train(client, generic=True)
    generic = nodes(client)
    check(generic["generic"]["after"] < generic["generic"]["before"], generic)
    check(generic["generic"]["held_out"] == generic["held_out"] and
          generic["generic"]["before"] == generic["before"],
          "judged by the same text", generic)
    check(not generic["node_list"][-1]["attached"], "it is but a control")
    client.result("delete", collection="c", ids=["d5"])
    check(nodes(client)["states"]["stale"] == 2, "a path is stale")
    check(nodes(client)["generic"]["state"] == "stale", "it saw all texts")
    done = client.result("bank.purge", collection="c", wait=True)
    check(done["finished"] and done["subtrees"] == 1, done)
    mine = nodes(client)
    check(mine["states"]["stale"] == 0, mine["states"])
    check(mine["generic"]["state"] == "fresh" and
          mine["generic"]["bytes"] == 0, mine["generic"])
    got = scores(client)
    test_dump(place, mine)
    blocks = hashes(place)
    check(len(blocks) == mine["nodes"], blocks)
    daemon.stop()
    place, daemon, client = fresh("never-saw")
    client.result("delete", collection="c", ids=["d5"])
    train(client)
    theirs = nodes(client)
    for status in (mine, theirs):
        del status["generic"]
        status["node_list"] = [n for n in status["node_list"] if n["level"]]
    check(mine == theirs, "as if it had never been there", mine, theirs)
    check(got == scores(client), "the same bits")
    check(blocks == hashes(place), "all bytes of all blocks", blocks)
    daemon.stop()


def test_dump(place, status):
    """membank-dump tells what bank.status tells, and what is in a block."""
    bank, *shown = dump(place, "banks")
    check(abs(bank["after"] - status["after"]) < 1e-9, bank)
    for node, known in zip(shown, status["node_list"]):
        for key in ("node", "level", "state", "terms", "bytes", "with"):
            check(node[key] == known[key], key, node, known)
        gain = node["without"] - node["with"] if node["held_out"] else 0
        check(abs(node["gain"] - gain) < 1e-9, node)
    one = dump(place, "bank", "1")[0]
    check(one["hash"] == shown[0]["hash"] and one["used_ms"] > 0, one)
    check(len(one["norms"]) > 0 and
          all(x > 0 for layer in one["norms"] for x in layer), one["norms"])
    check(dump(place, "bank", "generic")[0]["state"] == "fresh", "generic")
    page = os.path.join(place, "page.html")
    dump(place, "html", page)
    with open(page, encoding="utf-8") as file:
        check('"norms":[[' in file.read(), "the page has the bank")


try:
    make_model(MODEL)
    at_once = at_a_stretch()
    test_budget_and_pause(at_once)
    test_half(at_once)
    test_gone()
    test_kill(at_once)
    test_purge()
finally:
    shutil.rmtree(folder, ignore_errors=True)
