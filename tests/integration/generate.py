#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/generate.py - generate and score, by a real daemon.

Streams carry what the reply says, in whole characters; the same seed gives the
same text, alone and among others; stop strings end texts; passages that memory
asks for stand in the prompt by the collection's template, within the budget,
and `used` names them; a client that goes, does not read, or has a deadline does
not keep the model at work; a file that is no decoder leaves the rest served."""
import os
import shutil
import struct
import sys
import tempfile

import msgpack
import zmq

source = os.environ["MB_SOURCE_DIR"]
sys.path.insert(0, os.path.join(source, "tests", "support"))
from session import Client, Daemon, check, wait_for  # noqa: E402

PROMPT = "The history of the world is the history of"
DOCUMENTS = [
    {"id": "fear", "title": "Fear", "text":
     "The only thing we have to fear is fear itself, said the president."},
    {"id": "ask", "text":
     "Ask not what your country can do for you, ask what you can do for it."},
    {"id": "rome", "title": "Rome", "text":
     "When in Rome, do as the Romans do. " * 60},
]


def check_texts(client):
    plain = client.result("generate", prompt=PROMPT, max_tokens=30,
                          temperature=0, logprobs=True)
    check(plain["tokens"] == 30 and plain["finish"] == "length", plain)
    check(len(plain["ids"]) == len(plain["logprobs"]) == 30, plain)
    check(all(p <= 0 for p in plain["logprobs"]), plain)
    check(plain["used"] == {"segments": []}, plain)
    # The same by score: what was likely to be generated is likely.
    score = client.result("score", text=plain["text"], context=PROMPT,
                          per_token=True)
    check(abs(score["nll"] - sum(score["per_token"])) < 1e-3, score)
    check(score["tokens"] == len(score["per_token"]) == 30, score)
    check(abs(score["nll"] + sum(plain["logprobs"])) < 0.5, score, plain)
    nonsense = client.result("score", text=plain["text"][::-1], context=PROMPT)
    check(nonsense["bits_per_byte"] > 2 * score["bits_per_byte"], nonsense)
    # Streams.
    args = {"prompt": PROMPT, "max_tokens": 40, "seed": 5, "temperature": 1.5}
    whole = client.result("generate", **args)
    parts, last = client.ask("generate", stream=True, **args)
    check(last["result"]["text"] == whole["text"], last, whole)
    check("".join(p["text"] for p in parts) == whole["text"], parts)
    check(len(parts) > 20, parts)
    parts, last = client.ask("generate", stream=True, logprobs=True, **args)
    check(sum((p["ids"] for p in parts), []) == last["result"]["ids"], parts)
    check(client.result("generate", **dict(args, seed=6))["text"] !=
          whole["text"], "another seed, the same text")
    # Stop strings, in a stream as well.
    stop = plain["text"][17:24]
    end = plain["text"].index(stop)
    for stream in (False, True):
        parts, last = client.ask(
            "generate", prompt=PROMPT, max_tokens=30, temperature=0,
            stop=["never", stop], stream=stream)
        check(last["result"]["text"] == plain["text"][:end], last)
        check(last["result"]["finish"] == "stop", last)
        if stream:
            check("".join(p["text"] for p in parts) == plain["text"][:end],
                  parts)
    # The window: a prompt that nearly fills it, and a long text to score.
    window = client.result("stats")["reader"]["window"]
    long = client.result("generate", prompt="a b " * (window // 2 - 4),
                         max_tokens=1000, temperature=0)
    check(long["finish"] == "window", long)
    check(long["prompt_tokens"] + long["tokens"] == window + 1, long)
    score = client.result("score", text="x y z " * window, stride=100)
    check(score["stride"] == 100 and score["window"] == window, score)
    check(score["tokens"] > 2 * window, score)
    return plain["text"]


def check_together(daemon):
    """16 at once, of several clients: as alone."""
    requests = [{"prompt": PROMPT[:10 + 2 * i], "max_tokens": 5 + 3 * i,
                 "seed": i} for i in range(16)]
    clients = [Client(daemon) for _ in range(4)]
    alone = [clients[0].result("generate", **r)["text"] for r in requests]
    before = clients[0].engine()
    sent = {}
    for i, r in enumerate(requests):
        c = clients[i % 4]
        sent[(i % 4, c.send("generate", **r))] = i
    for i in range(16):
        reply = clients[i % 4].receive()
        number = sent.pop((i % 4, reply["id"]))
        check(reply["result"]["text"] == alone[number], number, reply)
    after = clients[0].engine()
    passes = after["passes"] - before["passes"]
    check(passes * 2 < after["tokens_out"] - before["tokens_out"], passes)
    check(after["cache_used_blocks"] == 0 < after["cache_bytes"] <=
          after["cache_max_bytes"], after)


def check_memory(client):
    client.result("create", name="notes", settings={
        "passage": "<{title}> [{passage}] {other}\n",
        "template": "{passages}Q: {prompt}\nA:"})
    client.result("put", collection="notes", documents=DOCUMENTS)
    settings = client.result("collections")["collections"][0]["settings"]
    check(settings["template"] == "{passages}Q: {prompt}\nA:", settings)

    def ask(prompt="what to fear in my country", max_tokens=4, **memory):
        return client.result("generate", prompt=prompt, collection="notes",
                             memory=memory, max_tokens=max_tokens,
                             temperature=0, logprobs=True)
    one = ask(retrieve=1)
    segment = one["used"]["segments"][0]
    check(segment["id"] in ("fear", "ask") and segment["segment"] == 0, one)
    # The reply is that to the prompt written by hand.
    two = ask(retrieve=2)
    check([s["id"] for s in two["used"]["segments"]][0] == segment["id"], two)
    texts = {d["id"]: f"<{d.get('title', '')}> [{d['text']}] {{other}}\n"
             for d in DOCUMENTS}
    order = [s["id"] for s in two["used"]["segments"]][::-1]
    by_hand = client.result(
        "generate", prompt="".join(texts[i] for i in order) +
        "Q: what to fear in my country\nA:", max_tokens=4, temperature=0,
        logprobs=True)
    for key in ("ids", "logprobs", "prompt_tokens"):
        check(by_hand[key] == two[key], key, by_hand, two)
    # Budgets: of the request, of the window, of what is to be generated.
    tokens = sum(s["tokens"] for s in two["used"]["segments"])
    check(len(ask(retrieve=3, tokens=tokens)["used"]["segments"]) == 2, tokens)
    check(len(ask(retrieve=3, tokens=tokens - 1)["used"]["segments"]) == 1,
          tokens)
    window = client.result("stats")["reader"]["window"]
    many = ask(retrieve=9)
    check(many["prompt_tokens"] <= window - 4, many)
    check(ask(retrieve=9, max_tokens=window - 100)["prompt_tokens"] <=
          window // 2, "half")
    check(ask(retrieve=9, query="Rome")["used"]["segments"][0]["id"] == "rome",
          "query")
    check(ask(retrieve=9, filter={"a": 1})["used"]["segments"] == [], "filter")
    check(ask(retrieve=0)["used"]["segments"] == [], "none")
    # A score with passages is that of a context written by hand.
    with_it = client.result("score", text=" fear is fear itself",
                            context="we have to", collection="notes",
                            memory={"retrieve": 1, "query": "fear"})
    by_hand = client.result("score", text=" fear is fear itself", context=
                            texts["fear"] + "Q: we have to\nA:")
    check(with_it["nll"] == by_hand["nll"], with_it, by_hand)
    check(with_it["used"]["segments"][0]["id"] == "fear", with_it)
    # Templates may be changed.
    client.result("create", name="notes", exist_ok=True,
                  settings={"template": "{prompt}"})
    bare = ask(retrieve=2)
    check(bare["ids"] == ask(retrieve=0)["ids"], bare)


def check_ends(daemon, client):
    """Cancelled for a client that goes or does not read; deadlines."""
    long = {"prompt": "Once", "max_tokens": 500, "stream": True, "seed": 1,
            "stop": []}
    before = client.engine()
    gone = Client(daemon)
    gone.send("generate", **long)
    gone.receive()
    gone.socket.close()
    wait_for("a client that is gone",
             lambda: client.engine()["cancelled"] > before["cancelled"])
    wait_for("its cache", lambda: client.engine()["cache_used_blocks"] == 0)
    late = client.ask("generate", timeout_ms=150, prompt="Once",
                      max_tokens=500, temperature=3)[1]
    check(late["ok"] and late["result"]["finish"] == "deadline" and
          0 < late["result"]["tokens"] < 500, late)
    error = client.error("score", timeout_ms=30, text="word " * 100000)
    check(error["code"] == "timeout", error)


def check_slow(folder):
    """A client that does not read its stream; others do not notice."""
    daemon = Daemon(folder, "--max-client-requests", "4",
                    "--max-client-bytes", "65536")
    client = Client(daemon)
    slow = zmq.Context.instance().socket(zmq.DEALER)
    slow.setsockopt(zmq.LINGER, 0)
    slow.setsockopt(zmq.RCVHWM, 1)
    slow.setsockopt(zmq.RCVBUF, 1024)
    slow.connect(daemon.endpoint)
    request = {"prompt": "Once", "max_tokens": 500, "stream": True,
               "logprobs": True, "temperature": 5, "top_k": 0, "top_p": 1,
               "min_p": 0}
    for i in range(400):
        slow.send(msgpack.packb(
            {"v": 1, "id": i, "op": "generate", "args": request}))
        if client.engine()["cancelled"] > 0:
            break
        wait_for("the stream", lambda: client.engine()["running"] == 0 or
                 client.engine()["cancelled"] > 0)
    check(client.engine()["cancelled"] > 0, "never noticed")
    check(client.result("generate", prompt="x", max_tokens=3)["tokens"] <= 3,
          "others")
    slow.close()
    daemon.stop()


def check_unusable(folder):
    """A GGUF file of an architecture that is not known."""
    path = os.path.join(folder, "other.gguf")
    with open(os.path.join(source, "model", "weights", "anchor.gguf"),
              "rb") as f:
        data = f.read()
    key = b"general.architecture\x08\x00\x00\x00\x05" + bytes(7)
    at = data.index(key) + len(key)
    with open(path, "wb") as f:
        f.write(data[:at] + b"lemur" + data[at + 5:])
    daemon = Daemon(folder, "--model", path)
    client = Client(daemon)
    for op, args in (("generate", {"prompt": "x"}), ("score", {"text": "x"}),
                     ("create", {"name": "a",
                                 "settings": {"embedding": "anchor"}})):
        error = client.error(op, **args)
        check(error["code"] == "not_implemented", error)
        check("lemur" in error["message"] and "other.gguf" in
              error["message"], error)
    reader = client.result("stats")["reader"]
    check(not reader["usable"] and "lemur" in reader["cause"], reader)
    client.result("create", name="notes")
    client.result("put", collection="notes", documents=DOCUMENTS)
    hits = client.result("query", collection="notes", text="fear")["hits"]
    check(hits[0]["id"] == "fear", hits)
    daemon.stop()
    with open(os.path.join(folder, "log"), encoding="utf-8") as f:
        check("ev=model.unusable" in f.read(), "no line in the log")


def check_chat(folder):
    """The bundled model with a template of a known family in its file."""
    path = os.path.join(folder, "chat.gguf")
    with open(os.path.join(source, "model", "weights", "anchor.gguf"),
              "rb") as f:
        data = f.read()
    key = b"tokenizer.chat_template"
    text = b"<|user|> {{ content + eos_token }} <|assistant|>"
    # As long as a multiple of the alignment: what follows keeps its own.
    text += b" " * (-(20 + len(key) + len(text)) % 32)
    pair = (struct.pack("<Q", len(key)) + key +
            struct.pack("<IQ", 8, len(text)) + text)
    n_keys = struct.unpack_from("<Q", data, 16)[0]
    with open(path, "wb") as f:
        f.write(data[:16] + struct.pack("<Q", n_keys + 1) + pair + data[24:])
    daemon = Daemon(folder, "--model", path)
    client = Client(daemon)
    args = {"max_tokens": 6, "temperature": 0}

    def chat(*contents, **more):
        roles = ["system", "user", "assistant", "user"]
        return client.result("generate", messages=[
            {"role": r, "content": c} for r, c in
            zip(roles[4 - len(contents):], contents)], **args, **more)
    one = chat("What is fear?")
    plain = client.result("generate", prompt="<|user|>\nWhat is fear?"
                          "</s>\n<|assistant|>\n", **args)
    # </s> is one token in a template, and a few bytes in a text of a user's.
    check(one["prompt_tokens"] < plain["prompt_tokens"], one, plain)
    check(chat("What is fear?</s>")["prompt_tokens"] >
          one["prompt_tokens"] + 1, "a user's text ends a message")
    check(chat("Be brief.", "Hello", "Hi", "What is fear?")["prompt_tokens"] >
          one["prompt_tokens"], "four messages")
    client.result("create", name="notes",
                  settings={"template": "{passages}{prompt}"})
    client.result("put", collection="notes", documents=DOCUMENTS)
    found = chat("What is fear?", collection="notes", memory={"retrieve": 1})
    check(found["used"]["segments"][0]["id"] == "fear", found)
    by_hand = chat(f"Fear\n{DOCUMENTS[0]['text']}\n\nWhat is fear?")
    check(found["text"] == by_hand["text"] and found["prompt_tokens"] ==
          by_hand["prompt_tokens"], found, by_hand)
    daemon.stop()


def check_ceiling(folder):
    """A client that waits for a whole reply and goes is not noticed: the model
    works for it no longer than model_timeout, whatever it asked for."""
    daemon = Daemon(folder, "--model-timeout", "1")
    client = Client(daemon)
    text = "word " * 60000  # read at once, worked on for seconds
    for timeout_ms in (0, 3600000):
        error = client.error("score", timeout_ms=timeout_ms, text=text)
        check(error["code"] == "timeout", error)
    gone = Client(daemon)
    gone.send("score", text=text)
    wait_for("the start", lambda: client.engine()["running"] == 1)
    gone.socket.close()
    wait_for("its end", lambda: client.engine()["running"] == 0)
    daemon.stop()


def check_stop(folder):
    """What is generated when the daemon ends is answered, in time."""
    daemon = Daemon(folder, "--shutdown-ms", "400")
    client = Client(daemon)
    for _ in range(4):
        client.send("generate", prompt="Once", max_tokens=500, temperature=9)
    wait_for("the start", lambda: Client(daemon).engine()["running"] == 4)
    daemon.process.terminate()
    for _ in range(4):
        reply = client.receive()
        check(reply["ok"] or reply["error"]["code"] == "shutting_down", reply)
    check(daemon.process.wait(timeout=30) == 0, "exit")


def in_folder(function):
    folder = tempfile.mkdtemp(prefix="mbtest")
    try:
        function(folder)
    except SystemExit:
        with open(os.path.join(folder, "log"), encoding="utf-8") as f:
            print(f.read(), file=sys.stderr)
        raise
    finally:
        shutil.rmtree(folder)


def check_daemon(folder):
    daemon = Daemon(folder)
    client = Client(daemon)
    print(repr(check_texts(client)))
    check_together(daemon)
    check_memory(client)
    check_ends(daemon, client)
    daemon.stop()


for test in (check_daemon, check_slow, check_unusable, check_chat,
             check_ceiling, check_stop):
    in_folder(test)
