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
from session import Client, Daemon, check

source = os.environ["MB_SOURCE_DIR"]
build = os.environ["MB_BINARY_DIR"]
folder = tempfile.mkdtemp(prefix="membank-banks-")
MODEL = os.path.join(folder, "small.gguf")
SUBJECTS = ["whale ship sea harpoon captain", "bread oven flour yeast baker",
            "star planet orbit comet telescope", "violin cello string bow tune"]


def documents():
    out = []
    for i in range(72):
        words = SUBJECTS[i % 4].split()
        text = " ".join(
            f"The {words[(i + k) % 5]} number {i} meets the "
            f"{words[(i + 2 * k + 1) % 5]} at noon." for k in range(4))
        out.append({"id": f"d{i}", "title": f"{words[0]} {i}", "text": text})
    return out


def make(name):
    """A store with a bank that nothing was trained on."""
    place = os.path.join(folder, name)
    os.makedirs(place)
    daemon = Daemon(place, "--model", MODEL)
    client = Client(daemon)
    client.result("create", name="c")
    client.result("put", collection="c", documents=documents(),
                  wait="searchable")
    made = client.result("bank.build", collection="c",
                         settings={"fan_out": 2, "levels": 2, "epochs": 2,
                                   "hold_out": 4})
    check(made["levels"] == 2 and made["nodes"] >= 4, made)
    return place, daemon, client


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


def nodes(client):
    status = client.result("bank.status", collection="c", nodes=True)
    for node in status["node_list"]:
        del node["trained_ms"]
    return status


def score(client, text, **memory):
    return client.result("score", text=text, collection="c", memory=memory,
                         per_token=True)


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
    subprocess.run(
        ["/usr/bin/python3",
         os.path.join(source, "tests", "support", "make_model.py"), "random",
         MODEL, "--shape", "small", "--tied"], check=True, stdout=subprocess.DEVNULL)
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
