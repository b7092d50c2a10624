#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/hmt.py - memories of segments, from training to contexts.

A run of a few steps, the same in two sittings; its companion beside the model:
what the evaluation says of it, and contexts of a daemon that have memories, cut
and restarted, with scores that must be equal, bit for bit. ctest: timeout=600"""
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.environ["MB_SOURCE_DIR"], "tests",
                                "support"))
from session import Client, Daemon, build, check

source = os.environ["MB_SOURCE_DIR"]
tools = os.path.join(build, "tools")
for name in ("membank-train", "membank-eval"):
    if not os.path.exists(os.path.join(tools, name)):
        print("not built:", name)
        sys.exit(77)
folder = tempfile.mkdtemp(prefix="membank-hmt-")
model = os.path.join(folder, "model.gguf")
companion = os.path.join(folder, "model.membank.gguf")
QUESTION = "We must go on, and remember what was said before."
SETTINGS = {"k": 2, "segment": 2, "memory": "hmt"}


def tool(name, *args, code=0):
    p = subprocess.run([os.path.join(tools, name), *args], text=True,
                       capture_output=True, timeout=200, check=False)
    check(p.returncode == code, args, p.returncode, p.stdout, p.stderr)
    return p


def texts():
    with open(os.path.join(source, "tools", "sample", "inaugural.jsonl"),
              encoding="utf-8") as f:
        return [json.loads(line)["text"] for line in f]


def write_jsonl(name, lines):
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as f:
        for text in lines:
            f.write(json.dumps({"text": text}) + "\n")
    return path


def train(out, *more, code=0):
    shards = os.path.join(folder, "shards")
    return tool("membank-train", "hmt", "--model", model, "-o",
                os.path.join(folder, out), "--heldout", shards + "/dev.mbtok",
                "--first-steps", "1", "--second-steps", "2", "--depth", "2",
                "--batch", "1", "--judged", "1", "--judge-steps", "2",
                "--segment", "2", "--summary", "63", "--sensory", "8",
                "--key-width", "16", "--threads", "2", "-q", *more,
                shards + "/a.mbtok", code=code)


def points(out):
    with open(os.path.join(folder, out, "curve.csv"), encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        del row["seconds"]
    return rows


def read(*parts):
    with open(os.path.join(folder, *parts), "rb") as f:
        return f.read()


def training():
    shutil.copy(os.path.join(source, "model", "weights", "anchor.gguf"), model)
    lines = texts()
    tool("membank-train", "shards", "-q", "-o", os.path.join(folder, "shards"),
         "--tokenizer", model, "a=" + write_jsonl("a.jsonl", lines[:4]),
         "dev=" + write_jsonl("dev.jsonl", lines[4:6]))
    p = json.loads(train("whole", "--json").stdout)
    check(p["step"] == p["steps"] == 3 and p["memories"] > 0, p)
    rows = points("whole")
    check([r["set"] for r in rows] ==
          ["nothing", "sensory", "memories", "train", "train", "memories",
           "train", "memories"], rows)
    train("parts", "--steps", "2")
    check(len(points("parts")) == 6, points("parts"))
    train("parts", "--resume")
    check(points("parts") == rows, points("parts"), rows)
    check(read("parts", "model.membank.gguf") ==
          read("whole", "model.membank.gguf"), "two sittings, other weights")
    p = train("parts", "--resume", "--seed", "2", code=1)
    check("begun with" in p.stderr, p.stderr)
    p = train("bad", "--recall", "some", code=2)
    check("all or last" in p.stderr, p.stderr)
    shutil.copy(os.path.join(folder, "whole", "model.membank.gguf"), companion)


def evaluation():
    file = write_jsonl("eval.jsonl", [texts()[6][:6000]])
    out = os.path.join(folder, "ppl.csv")
    nats = {}
    for kind in ("landmark", "sensory", "hmt", "both"):
        tool("membank-eval", "--model", model, "--context", kind, "--segment",
             "2", "-k", "2", "--csv", out, "ppl", file)
        with open(out, encoding="utf-8") as f:
            row, = csv.DictReader(f)
        check(row["context"] == kind and
              row["k"] == ("0" if kind == "hmt" else "2"), row)
        nats[kind] = float(row["nats_per_token"])
    check(len(set(nats.values())) == 4 and
          all(2 < x < 12 for x in nats.values()), nats)
    p = tool("membank-eval", "--context", "hmt", "ppl", file, code=1)
    check("membank.gguf" in p.stderr, p.stderr)


def score(client, name):
    return client.result("context.score", name=name, text=QUESTION,
                         per_token=True)["per_token"]


def contexts():
    text = texts()[7]
    cut = len(text) // 3
    daemon = Daemon(folder, "--model", model)
    client = Client(daemon)
    one = client.result("context.open", name="one", settings=SETTINGS)
    settings = one["context"]["settings"]
    check(settings["memory"] == "hmt" and len(settings["companion"]) == 32,
          settings)
    client.result("context.append", name="one", text=text)
    n = client.result("context.list", name="one")["contexts"][0]
    check(n["segments"] > 4, n)
    want = score(client, "one")
    check(want == score(client, "one"), "what was only tried left traces")
    # In pieces; and without memories, which is something else.
    client.result("context.open", name="two", settings=SETTINGS)
    client.result("context.append", name="two", text=text[:cut])
    client.result("context.close", name="two")
    client.result("context.append", name="two", text=text[cut:])
    client.result("context.open", name="none",
                  settings={"k": 2, "segment": 2})
    client.result("context.append", name="none", text=text)
    check(score(client, "none") != want, "memories change nothing")
    # Longer than a segment, and back.
    args = {"name": "one", "text": "And so", "max_tokens": 140, "top_k": 1,
            "seed": 5}
    first = client.result("context.generate", **args)
    check(first == {**client.result("context.generate", **args),
                    "took_us": first["took_us"]}, first)
    check(score(client, "one") == want, "a generation left traces")
    client.result("context.fork", name="one", to="fork", at=300)
    daemon.stop()
    daemon = Daemon(folder, "--model", model)
    client = Client(daemon)
    check(score(client, "one") == want, "after a restart")
    again = client.result("context.generate", **args)
    check(again["text"] == first["text"], again, first)
    forked = score(client, "fork")
    client.result("context.truncate", name="one", at=300)
    check(score(client, "one") == forked, "a fork is not the same as a cut")
    result = client.result("verify")
    check(result["broken"] == 0, "verify", result)
    daemon.stop()


def refused():
    os.rename(companion, companion + ".away")
    daemon = Daemon(folder, "--model", model)
    client = Client(daemon)
    e = client.error("context.open", name="new", settings=SETTINGS)
    check(e["code"] == "not_implemented" and "model.gguf" in e["message"], e)
    e = client.error("context.score", name="two", text=QUESTION)
    check(e["code"] == "not_implemented", e)
    e = client.error("context.open", name="new",
                     settings={"memory": "everything"})
    check(e["code"] == "bad_arg", e)
    shutil.copy(os.path.join(folder, "other", "model.membank.gguf"), companion)
    e = client.error("context.score", name="two", text=QUESTION)
    check(e["code"] == "mismatch" and "companion" in e["message"], e)
    client.result("context.delete", name="two")
    daemon.stop()


try:
    training()
    train("other", "--seed", "3", "--recall", "last")
    evaluation()
    contexts()
    refused()
finally:
    shutil.rmtree(folder, ignore_errors=True)
print("hmt: passed")
