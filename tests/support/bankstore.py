# SPDX-License-Identifier: Apache-2.0
"""tests/support/bankstore.py - a small collection with a memory bank, for the
tests that train one: four subjects, a random model."""
import json
import os
import subprocess

from session import Client, Daemon, check

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


def make_model(path):
    subprocess.run(
        ["/usr/bin/python3",
         os.path.join(os.environ["MB_SOURCE_DIR"], "tests", "support",
                      "make_model.py"), "random", path, "--shape", "small",
         "--tied", "--d-model", "64", "--n-heads", "4", "--d-ff", "128"],
        check=True, stdout=subprocess.DEVNULL)


def make(place, model, *options, **settings):
    """A store with a bank that nothing was trained on."""
    os.makedirs(place)
    daemon = Daemon(place, "--model", model, *options)
    client = Client(daemon)
    client.result("create", name="c")
    client.result("put", collection="c", documents=documents(),
                  wait="searchable")
    made = client.result("bank.build", collection="c",
                         settings=dict({"fan_out": 2, "levels": 2, "epochs": 2,
                                        "hold_out": 4}, **settings))
    check(made["levels"] == 2 and made["nodes"] >= 4, made)
    return daemon, client


def nodes(client):
    status = client.result("bank.status", collection="c", nodes=True)
    for node in status["node_list"]:
        del node["trained_ms"], node["used_ms"]
    if status["generic"]:
        del status["generic"]["trained_ms"]
    return status


def score(client, text, **memory):
    return client.result("score", text=text, collection="c", memory=memory,
                         per_token=True)


def dump(place, *view):
    """What membank-dump shows of the store, line by line."""
    out = subprocess.run(
        [os.path.join(os.environ["MB_BINARY_DIR"], "tools", "membank-dump"),
         "--store", os.path.join(place, "store"), "--json", *view],
        check=True, stdout=subprocess.PIPE, text=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def hashes(place):
    """Of the bytes of each block that is served, by node."""
    return {n["node"]: n["hash"] for n in dump(place, "banks") if "hash" in n}
