#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/bank_blocked.py - a block that is denied is never read.

A block on a text's path is disabled, and its record is then overwritten with
zeros in the store: scores stay as they were, to the bit, with the other blocks
of the path attached. Once it is enabled again the record is read, and found
damaged. ctest: timeout=180"""
import os
import shutil
import subprocess
import sys
import tempfile

source = os.environ["MB_SOURCE_DIR"]
build = os.environ["MB_BINARY_DIR"]
sys.path.insert(0, os.path.join(source, "tests", "support"))
from session import Client, Daemon, check  # noqa: E402

folder = tempfile.mkdtemp(prefix="membank-blocked-")
model = os.path.join(folder, "small.gguf")
SUBJECTS = ["whale ship sea harpoon captain", "bread oven flour yeast baker"]
QUESTION = "The whale meets the harpoon at noon."


def documents():
    for i in range(72):
        words = SUBJECTS[i % 2].split()
        yield {"id": f"d{i}", "text": " ".join(
            f"The {words[(i + k) % 5]} meets the {words[(i + 2 * k + 1) % 5]} "
            "at noon." for k in range(4))}


def score(client):
    return client.result("score", text=QUESTION, collection="c",
                         memory={"bank": True}, per_token=True)


def test():
    subprocess.run(
        ["/usr/bin/python3",
         os.path.join(source, "tests", "support", "make_model.py"), "random",
         model, "--shape", "small", "--tied"], check=True,
        stdout=subprocess.DEVNULL)
    store = os.path.join(folder, "store")
    daemon = Daemon(folder, "--model", model)
    client = Client(daemon)
    client.result("create", name="c")
    client.result("put", collection="c", documents=list(documents()),
                  wait="searchable")
    client.result("bank.build", collection="c", settings={
        "fan_out": 2, "levels": 2, "epochs": 3, "hold_out": 4})
    daemon.stop()
    subprocess.run([os.path.join(build, "tools", "membank-train"), "bank",
                    "-s", store, "-C", "c", "--tokenizer", model,
                    "--threads", "1", "-q"], check=True,
                   stdout=subprocess.DEVNULL)
    daemon = Daemon(folder, "--model", model)
    client = Client(daemon)
    whole = score(client)
    attached = [s["node"] for s in
                client.result("bank.path", collection="c",
                              text=QUESTION)["path"] if s["node"]["attached"]]
    check(len(attached) == 2, "both blocks help", attached)
    denied = attached[1]["node"]
    client.result("bank.disable", collection="c", node=denied)
    without = score(client)
    check(0 < without["used"]["bank"]["bytes"] <
          whole["used"]["bank"]["bytes"], without["used"])
    check(without["per_token"] != whole["per_token"], "it says something")
    daemon.stop()
    subprocess.run([os.path.join(build, "tests", "spoil_block"), store, "c",
                    str(denied)], check=True)
    daemon = Daemon(folder, "--model", model)
    client = Client(daemon)
    check(score(client)["per_token"] == without["per_token"],
          "the denied record is not read")
    client.result("bank.disable", collection="c", node=denied, disable=False)
    error = client.error("score", text=QUESTION, collection="c",
                         memory={"bank": True})
    check(error["code"] == "corrupt", "now it is read", error)
    daemon.stop()


try:
    test()
finally:
    shutil.rmtree(folder, ignore_errors=True)
