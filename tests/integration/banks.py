#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/banks.py - memory banks: built, trained, used, forgotten.

Blocks of two stores are compared by what membank-dump does not need to know:
the served rows themselves, through losses that bank.status tells and scores of
texts, which are the same bits exactly if the blocks are. ctest: timeout=300"""
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
from bankstore import SUBJECTS, documents, make_model, nodes, score
from bankstore import make as make_store
from session import Client, Daemon, check

build = os.environ["MB_BINARY_DIR"]
folder = tempfile.mkdtemp(prefix="membank-banks-")
MODEL = os.path.join(folder, "small.gguf")


def make(name):
    place = os.path.join(folder, name)
    return (place, *make_store(place, MODEL))


def train(place, *options, kill_after=None):
    process = subprocess.Popen(
        [os.path.join(build, "tools", "membank-train"), "bank", "-s",
         os.path.join(place, "store"), "-C", "c", "--tokenizer", MODEL,
         "--threads", "1", "-q", "--json", *options], stdout=subprocess.PIPE)
    if kill_after is not None:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
    out = process.communicate()[0]
    if kill_after is not None:
        return None
    check(process.returncode == 0, "membank-train", process.returncode)
    return json.loads(out)


def test_fresh(client):
    text = documents()[5]["text"]
    plain = score(client, text, bank=False)
    check("bank" not in plain["used"], plain["used"])
    fresh = score(client, text, bank=True)
    check(len(fresh["used"]["bank"]["path"]) == 2, fresh["used"])
    check(fresh["used"]["bank"]["bytes"] == 0, fresh["used"])
    check(plain["per_token"] == fresh["per_token"], "fresh blocks are none")
    path = client.result("bank.path", collection="c", text="whale harpoon")
    check([s["node"]["level"] for s in path["path"]] == [1, 2], path)
    check(client.error("bank.status", collection="x")["code"] == "not_found")


def test_trained(client):
    status = nodes(client)
    check(status["states"]["ready"] == status["nodes"], status["states"])
    check(status["after"] < status["before"], "held-out loss fell", status)
    check(status["states"]["attached"] > 0, status["states"])
    text = documents()[5]["text"]
    with_bank = score(client, text, bank=True)
    check(with_bank["used"]["bank"]["bytes"] > 0, with_bank["used"])
    check(with_bank["nll"] < score(client, text, bank=False)["nll"], "learnt")
    check(score(client, text)["nll"] == with_bank["nll"], "on by default")
    client.result("bank.disable", collection="c")
    off = score(client, text, bank=True)
    check(off["used"]["bank"]["bytes"] == 0, off["used"])
    client.result("bank.disable", collection="c", disable=False)
    check(client.result("verify")["broken"] == 0, "verify")


def test_emptied(place, daemon, client):
    """A leaf loses all of its text, the one beside it keeps its own."""
    leaf = client.result("bank.path", collection="c",
                         text=SUBJECTS[0])["path"][1]["node"]["node"]
    client.result("delete", collection="c",
                  ids=[f"d{i}" for i in range(0, 72, 4)])
    daemon.stop()
    check(train(place)["finished"], "finished")
    daemon = Daemon(place, "--model", MODEL)
    status = nodes(Client(daemon))
    daemon.stop()
    check(status["states"]["stale"] == 0, status["states"])
    emptied = [n for n in status["node_list"] if n["node"] == leaf][0]
    check(emptied["state"] == "fresh" and emptied["bytes"] == 0, emptied)


def test_all():
    make_model(MODEL)
    gone = "d5"
    # One is trained, loses a document, and is trained again, with a kill.
    place, daemon, client = make("a")
    test_fresh(client)
    daemon.stop()
    train(place, kill_after=1.0)
    check(train(place)["finished"], "finished")
    daemon = Daemon(place, "--model", MODEL)
    client = Client(daemon)
    test_trained(client)
    client.result("delete", collection="c", ids=[gone])
    stale = nodes(client)["states"]["stale"]
    check(stale == 2, "a path is stale", stale)
    daemon.stop()
    check(train(place)["finished"], "finished")
    daemon = Daemon(place, "--model", MODEL)
    client = Client(daemon)
    mine = nodes(client)
    check(mine["states"]["stale"] == 0, mine["states"])
    scores = [score(client, d["text"], bank=True)["per_token"]
              for d in documents()[:12]]
    daemon.stop()
    # The other never saw the document, and has the same tree.
    place, daemon, client = make("b")
    client.result("delete", collection="c", ids=[gone])
    daemon.stop()
    check(train(place)["finished"], "finished")
    daemon = Daemon(place, "--model", MODEL)
    client = Client(daemon)
    check(nodes(client) == mine, "as if it had never been there")
    check(scores == [score(client, d["text"], bank=True)["per_token"]
                     for d in documents()[:12]], "the same bits")
    test_emptied(place, daemon, client)
    daemon = Daemon(place, "--model", MODEL)
    client = Client(daemon)
    client.result("bank.reset", collection="c")
    check(client.error("bank.status", collection="c")["code"] == "not_found")
    daemon.stop()


try:
    test_all()
finally:
    shutil.rmtree(folder, ignore_errors=True)
