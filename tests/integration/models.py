#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/models.py - one store under one model, another, the first.

Embeddings by the model carry its fingerprint. Under another model nothing is
lost and nothing confused: its vectors lie dormant, search is lexical, what is
put meanwhile gets vectors when the first is back. All else does not care which
model reads. Also: query by such vectors, and rerank."""
import os
import shutil
import struct
import sys
import tempfile
import time

source = os.environ["MB_SOURCE_DIR"]
sys.path.insert(0, os.path.join(source, "tests", "support"))
from session import Client, Daemon, check, wait_for  # noqa: E402

ANCHOR = os.path.join(source, "model", "weights", "anchor.gguf")
TOPICS = {
    "sea": "The ship sailed over the sea with all its sails before the wind.",
    "law": "The court held that the law was void under the constitution.",
    "war": "The army marched to the front and the battle began at dawn.",
    "tea": "She poured the tea and put the cups upon the little table.",
}


def documents(prefix, n):
    names = sorted(TOPICS)
    return [{"id": f"{prefix}{i}", "title": names[i % 4],
             "text": f"{TOPICS[names[i % 4]]} Note {prefix} {i}."}
            for i in range(n)]


def other_model(path):
    """The bundled model with other numbers: the last norm's weights changed."""
    with open(ANCHOR, "rb") as f:
        data = bytearray(f.read())
    for at in range(len(data) - 4096, len(data)):
        data[at] ^= 1 if at % 16 == 0 else 0
    name = b"membank anchor"
    at = data.index(name)
    data[at:at + len(name)] = b"membank orchan"
    with open(path, "wb") as f:
        f.write(data)


def vectors(client, *texts, **args):
    result = client.result("embed", texts=list(texts), **args)
    return [struct.unpack(f"<{result['dim']}f", v) for v in result["vectors"]]


def dense_of(client):
    return client.result("collections", name="a")["collections"][0]["dense"]


def embedded(client, n):
    dense = dense_of(client)
    return dense["vectors"] == n and not dense["dormant"]


def check_vectors(client):
    a, b, empty = vectors(client, "the sea", "the law", "")
    check(abs(sum(x * x for x in a) - 1) < 1e-5 and a != b, "not unit")
    check(not any(empty), "an empty text has a vector")
    check(vectors(client, "the sea", collection="a")[0] == a, "collection")
    # A text finds itself, and its cosine is 1.
    text = documents("x", 6)[5]["text"]
    for mode in ("dense", "hybrid"):
        hits = client.result("query", collection="a", text=text, mode=mode,
                             k=3)["hits"]
        check(hits[0]["id"] == "x5" and hits[0]["dense"] > 0.999, mode, hits)
    many = client.result("query", collection="a", mode="dense", k=1, queries=[
        {"text": d["text"]} for d in documents("x", 20)])["results"]
    check([r["hits"][0]["id"] for r in many] ==
          [f"x{i}" for i in range(20)], many)
    given = client.result("query", collection="a", vector=list(a), k=2)
    check(len(given["hits"]) == 2, given)


def check_rerank(client):
    """As the scores say, asked for one by one."""
    question = "What did the court say of the law?"
    plain = client.result("query", collection="a", text=question, k=8)["hits"]
    hits = client.result("query", collection="a", text=question, k=8,
                         rerank=8)["hits"]
    check(sorted(h["id"] for h in hits) == sorted(h["id"] for h in plain),
          hits, plain)
    want = []
    for h in plain:
        s = client.result("score", text=question, context=
                          f"{h['title']}\n{h['text']}\n\n")
        want.append((-s["nll"] / s["tokens"], h["id"]))
    want.sort(reverse=True)
    check(max(abs(h["score"] - w[0]) for h, w in zip(hits, want)) < 1e-4,
          hits, want)
    check(hits[0]["title"] == "law", hits)
    scores = [h["score"] for h in hits]
    check(scores == sorted(scores, reverse=True), scores)
    check(len(client.result("query", collection="a", text=question, k=3,
                            rerank=8)["hits"]) == 3, "k")
    error = client.error("query", collection="a", rerank=5,
                         queries=[{"text": "x"}])
    check(error["code"] == "bad_arg", error)
    # Passages for a prompt are found by the same vectors.
    used = client.result(
        "generate", collection="a", prompt=documents("x", 6)[5]["text"],
        memory={"retrieve": 1, "mode": "dense"}, max_tokens=2)["used"]
    check(used["segments"][0]["id"] == "x5", used)


def check_other(client):
    """Under the other model."""
    dense = dense_of(client)
    check(dense["dormant"] and dense["model"] == "membank anchor" and
          dense["vectors"] == 40, dense)
    check(client.result("ping")["model"] == "membank orchan", "ping")
    hits = client.result("query", collection="a", text="court constitution",
                         k=3)["hits"]
    check(hits[0]["title"] == "law", hits)
    error = client.error("query", collection="a", text="x", mode="dense")
    check(error["code"] == "mismatch" and "anchor" in error["message"] and
          "orchan" in error["message"], error)
    start = time.monotonic()
    client.result("put", collection="a", documents=documents("y", 12),
                  wait="searchable")
    check(time.monotonic() - start < 5, "a put waits for vectors")
    client.result("delete", collection="a", ids=["x1"])
    check(client.result("generate", prompt="x", max_tokens=2)["tokens"] <= 2,
          "generate")
    check(dense_of(client)["vectors"] == 39, dense_of(client))


def run(folder):
    daemon = Daemon(folder)
    client = Client(daemon)
    client.result("create", name="a", settings={"embedding": "anchor"})
    client.result("create", name="b")
    client.result("put", collection="a", documents=documents("x", 40),
                  wait="searchable")
    check(embedded(client, 40), dense_of(client))
    client.result("put", collection="b", documents=documents("b", 80),
                  wait="searchable")
    check_vectors(client)
    check_rerank(client)
    sea = vectors(client, "the sea")[0]
    lsa = vectors(client, "the sea", collection="b")[0]
    daemon.stop()

    path = os.path.join(folder, "other.gguf")
    other_model(path)
    daemon = Daemon(folder, "--model", path)
    client = Client(daemon)
    check_other(client)
    check(vectors(client, "the sea")[0] != sea, "the same vectors")
    check(vectors(client, "the sea", collection="b")[0] == lsa, "lsa")
    daemon.stop()

    daemon = Daemon(folder)
    client = Client(daemon)
    check(vectors(client, "the sea")[0] == sea, "other vectors")
    # What came under the other model gets its vectors now.
    wait_for("vectors of what was put meanwhile",
             lambda: embedded(client, 51))
    hits = client.result("query", collection="a", mode="dense", k=1,
                         text=documents("y", 12)[7]["text"])["hits"]
    check(hits[0]["id"] == "y7" and hits[0]["dense"] > 0.999, hits)
    hits = client.result("query", collection="a", mode="dense", k=60,
                         text=documents("x", 12)[1]["text"])["hits"]
    check("x1" not in [h["id"] for h in hits] and len(hits) == 51, hits)
    check(client.result("verify")["broken"] == 0, "verify")
    daemon.stop()

    # Whoever stays with another model has them made anew.
    daemon = Daemon(folder, "--model", path)
    client = Client(daemon)
    client.result("rebuild", collection="a")
    wait_for("rebuild", lambda: embedded(client, 51))
    check(dense_of(client)["model"] == "membank orchan", "owner")
    kinds = [j["kind"] for j in client.result("jobs")["jobs"]]
    check("embed" in kinds, kinds)
    check(client.result("verify")["broken"] == 0, "verify")
    daemon.stop()


def main():
    folder = tempfile.mkdtemp(prefix="mbtest")
    try:
        run(folder)
    except SystemExit:
        with open(os.path.join(folder, "log"), encoding="utf-8") as f:
            print(f.read(), file=sys.stderr)
        raise
    finally:
        shutil.rmtree(folder)


main()
