#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/train.py - membank-train on a tiny model.

Shards from texts; a whole run; the same run cut in pieces, by a signal, by
kill -9 and by a full disk, with the same losses to the last digit; the exported
files, read by another reader and scored by the decoder; what is refused."""
import csv
import gzip
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np

source = os.environ["MB_SOURCE_DIR"]
build = os.environ["MB_BINARY_DIR"]
sys.path.insert(0, os.path.join(source, "tests", "support"))
import decoder_run  # noqa: E402
import gguf_file  # noqa: E402

tool = os.path.join(build, "tools", "membank-train")
if not os.path.exists(tool):
    print("not built:", tool)
    sys.exit(77)
vocab = os.path.join(source, "model", "weights", "anchor.gguf")
folder = tempfile.mkdtemp(prefix="membank-train-test-")
failures = 0

CONFIG = """# a tiny model
tokenizer = {vocab}
source = {folder}/shards/a.mbtok 2
source = {folder}/shards/b.mbtok 1  # half as much
heldout = dev {folder}/shards/dev.mbtok
name = tiny
layers = 2
width = 32
heads = 2
kv_heads = 1
head_dim = 16
ffn = 64
rows = 128
tasks = 0.25
batch = 3
tokens = 9216
warmup = 4
threads = 2
heldout_steps = 6
checkpoint_minutes = {minutes}
"""
N_STEPS = 24


def check(what, ok, shown=""):
    global failures
    if not ok:
        failures += 1
        print(f"FAILED: {what}\n{shown}")


def path(name):
    return os.path.join(folder, name)


def write(name, text):
    with open(path(name), "w", encoding="utf-8") as f:
        f.write(text)
    return path(name)


def read(name):
    with open(path(name), "rb") as f:
        return f.read()


def run(*args, code=0, **options):
    p = subprocess.run([tool, *args], capture_output=True, text=True,
                       timeout=100, check=False, **options)
    check(f"{args}: exit {p.returncode}, wanted {code}",
          p.returncode == code, p.stdout + p.stderr)
    return p


def points(name):
    """The lines of a curve without the seconds, which differ."""
    with open(path(name + "/curve.csv"), encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        del row["seconds"]
    return rows


# ---- a vocabulary ----


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def message(*fields):
    """A protobuf message of (id, whole number, float or bytes)."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        elif isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def vocabularies():
    """SentencePiece's file of the bundled vocabulary gives that vocabulary; a
    bad one is refused; spm_train, where it is, makes one of texts."""
    keys, _ = gguf_file.read(vocab)
    pieces = [message((1, text.encode()), (2, float(score)), (3, int(kind)))
              for text, score, kind in zip(*(
                  keys["tokenizer.ggml." + k][1][1]
                  for k in ("tokens", "scores", "token_type")))]
    trainer = message((1, b"sample.txt"), (3, 2), (10, 0.5))
    normal = message((1, b"identity"), (3, 1), (4, 0))
    whole = b"".join(message((1, p)) for p in pieces) + message(
        (2, trainer), (3, normal))
    with open(path("v.model"), "wb") as f:
        f.write(whole)
    run("tokenizer", "-o", path("v.gguf"), "--spm", path("v.model"))
    made, tensors = gguf_file.read(path("v.gguf"))
    check("a vocabulary has no tensors", not tensors)
    check("SentencePiece's file gives the bundled vocabulary", all(
        np.array_equal(np.asarray(made[k][1][1] if made[k][0] == 9
                                  else made[k][1]),
                       np.asarray(v[1][1] if v[0] == 9 else v[1]))
        for k, v in keys.items() if k.startswith("tokenizer.")), made.keys())
    cases = {
        "cut": whole[:-4], "empty": b"", "text": b"This is no model at all.",
        "unigram": whole.replace(trainer, message((1, b"sample.txt"), (3, 1),
                                                  (10, 0.5))),
        "no text": message((1, message((2, 1.0)))) + whole,
        "long": message((1, b"x"))[:1] + varint(1 << 60) + whole,
        "no bytes": whole.replace(b"<0x41>", b"<1x41>"),
    }
    for name, data in cases.items():
        with open(path("bad.model"), "wb") as f:
            f.write(data)
        p = run("tokenizer", "-o", path("bad.gguf"), "--spm",
                path("bad.model"), code=1)
        check(f"{name}: nothing is left", not os.path.exists(
            path("bad.gguf")) and p.stderr.startswith("membank-train: "),
            p.stderr)
    run("tokenizer", "-o", path("bad.gguf"), code=2)
    run("tokenizer", "--spm", path("v.model"), code=2)
    texts = os.path.join(source, "tools", "sample", "inaugural.jsonl")
    args = ["tokenizer", "-q", "-o", path("own.gguf"), "--pieces", "700",
            texts]
    p = run(*args, code=1, env={**os.environ, "PATH": folder})
    check("says what is missing", "not installed" in p.stderr, p.stderr)
    p = run(*args, code=1, env={**os.environ, "TMPDIR": path("none")})
    check("says where it wanted a folder", path("none") in p.stderr, p.stderr)
    if not shutil.which("spm_train"):
        print("spm_train is not installed: no vocabulary of texts")
        return
    run(*args)
    own, _ = gguf_file.read(path("own.gguf"))
    tokens = own["tokenizer.ggml.tokens"][1][1]
    check("700 pieces, controls, bytes, words", len(tokens) == 700 and
          list(tokens[:9]) == ["<unk>", "<s>", "</s>", "<landmark>",
                               "<summary>", "<memory>", "<query>", "<passage>",
                               "<0x00>"] and "\u2581the" in tokens, tokens)
    check("digits one by one", not any(
        re.search("[0-9]{2}", t) for t in tokens if not t.startswith("<0x")))
    p = run("shards", "-q", "-o", path("own"), "--tokenizer", path("own.gguf"),
            f"x={texts}")
    check("it encodes", 2 < float(p.stdout.split()[-4]) < 5, p.stdout)
    p = run(*args[:5], "1000000", texts, code=1)
    check("tells what spm_train says", "spm_train failed" in p.stderr,
          p.stderr)
    check("no temporary folder is left", not [
        f for f in os.listdir("/tmp") if f.startswith("membank-train-") and
        os.path.exists(f"/tmp/{f}/text")])


# ---- shards ----


def tokens_of(name):
    data = read(f"shards/{name}.mbtok")
    size, = np.frombuffer(data, "<u4", 1, 12)
    n, = np.frombuffer(data, "<u8", 1, 32)
    return np.frombuffer(data, "<u2" if size == 2 else "<u4", int(n), 128)


def make_shards():
    with open(os.path.join(source, "tools", "sample", "inaugural.jsonl"),
              encoding="utf-8") as f:
        lines = f.readlines()
    write("a.jsonl", "".join(lines[:8]))
    with gzip.open(path("b.jsonl.gz"), "wt", encoding="utf-8") as f:
        f.write("".join(lines[8:12]))
    write("dev.jsonl", "".join(lines[12:15]))
    write("note.txt", "A text of its own.")
    args = ["shards", "-q", "-o", path("shards"), "--tokenizer", vocab]
    p = run(*args, f"a={path('a.jsonl')}", f"b={path('b.jsonl.gz')}",
            f"a={path('note.txt')}")
    check("two shards, one of two files", len(p.stdout.splitlines()) == 2 and
          "9 documents" in p.stdout.splitlines()[0], p.stdout)
    run(*args, "--max-chars", "2000", f"dev={path('dev.jsonl')}")
    keys, _ = gguf_file.read(vocab)
    pieces = keys["tokenizer.ggml.tokens"][1][1]
    dev = tokens_of("dev")
    starts = np.flatnonzero(dev == 1)
    check("three documents with <s> and </s>", len(starts) == 3 and
          starts[0] == 0 and dev[-1] == 2 and
          (dev[starts[1:] - 1] == 2).all(), dev)
    text = json.loads(lines[12])["text"][:2000]
    shown = "".join(pieces[i] for i in dev[1:starts[1] - 1])
    check("the text is cut at 2,000 characters",
          shown.replace("\u2581", " ").replace("<0x0A>", "\n") == " " + text,
          shown)
    for bad in (["x"], ["=f"], ["a/b=f"], ["a="]):
        run(*args, *bad, code=2)
    p = run(*args, f"x={path('none.jsonl')}", code=1)
    check("names the file", "none.jsonl" in p.stderr, p.stderr)
    write("bad.jsonl", '{"text": "good"}\n{"nothing": 1}\n')
    p = run(*args, f"x={path('bad.jsonl')}", code=1)
    check("names the line", "line 2" in p.stderr, p.stderr)
    check("no half-made shard",
          sorted(os.listdir(path("shards"))) ==
          ["a.mbtok", "b.mbtok", "dev.mbtok"], os.listdir(path("shards")))


# ---- one run, whole and in pieces ----


def config(minutes=5, **changes):
    text = CONFIG.format(vocab=vocab, folder=folder, minutes=minutes)
    for key, value in changes.items():
        text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.M)
    return text


def whole_run():
    write("run.conf", config())
    p = run("anchor", "-q", "-c", path("run.conf"), "-o", path("whole"))
    check("tells the end", f"step {N_STEPS} of {N_STEPS}" in p.stdout,
          p.stdout)
    check("all files", sorted(os.listdir(path("whole"))) == sorted(
        ["config", "checkpoint", "curve.csv", "curve.svg", "log"] +
        [f"model-{t}.gguf" for t in ("f32", "f16", "q8_0")]),
        os.listdir(path("whole")))
    check("the config is copied", read("whole/config") == read("run.conf"))
    rows = points("whole")
    train = [float(r["loss"]) for r in rows if r["set"] == "train"]
    dev = [float(r["loss"]) for r in rows if r["set"] == "dev"]
    check("a point for each step", len(train) == N_STEPS, rows)
    check("held-out losses every six steps", len(dev) == 4, rows)
    check("both forms", any(r["set"] == "dev +landmarks" for r in rows), rows)
    check("tasks", {"passkey", "lookup", "copy", "list"} <=
          {r["set"] for r in rows}, rows)
    check("it learns", abs(train[0] - np.log(8192)) < 0.2 and
          train[-1] < train[0] - 0.4 and dev[-1] < dev[0] - 0.3, train)
    log = read("whole/log").decode()
    check("the log has begin, step, heldout, end", all(
        f"ev={e} " in log for e in ("begin", "step", "heldout", "end")), log)
    p = run("anchor", "-q", "-r", "--json", "-o", path("whole"))
    check("a run that has ended ends again",
          points("whole") == rows and
          any(json.loads(line)["set"] == "dev"
              for line in p.stdout.splitlines()), p.stdout)
    return rows


def pieces(expected):
    """Stopped after 7 steps; then the disk is full; then on."""
    run("anchor", "-q", "-c", path("run.conf"), "-o", path("cut"), "--steps",
        "7")
    kept = read("cut/checkpoint")
    check("seven steps", points("cut") == [
        r for r in expected if int(r["step"]) <= 7], points("cut"))
    run("anchor", "-q", "-c", path("run.conf"), "-o", path("cut"), code=1)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    p = run("anchor", "-q", "-r", "-o", path("cut"), "--steps", "2", code=1,
            preexec_fn=limit)
    check("names the file", "checkpoint" in p.stderr, p.stderr)
    check("the old checkpoint stays", read("cut/checkpoint") == kept)
    check("nothing lies about", not [
        f for f in os.listdir(path("cut")) if "tmp" in f])
    run("anchor", "-q", "-r", "-o", path("cut"))
    check("in pieces the same losses", points("cut") == expected)
    for kind in ("f32", "q8_0"):
        check(f"and the same {kind} file",
              read(f"cut/model-{kind}.gguf") == read(f"whole/model-{kind}.gguf"))


def start(name, *args):
    p = subprocess.Popen([tool, "anchor", "-q", *args, "-o", path(name)],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True)
    return p


def wait_for_lines(p, name, n):
    end = time.time() + 60
    while time.time() < end and p.poll() is None:
        try:
            if read(name + "/curve.csv").count(b"\n") > n:
                return
        except OSError:
            pass
        time.sleep(0.005)
    check(f"{name}: {n} lines of the curve in time", p.poll() is not None)


def broken_off(expected):
    write("saving.conf", config(minutes=0))
    p = start("killed", "-c", path("saving.conf"))
    for n in (3, 9, 30):
        wait_for_lines(p, "killed", n)
        p.kill()
        p.communicate()
        p = start("killed", "-r")
    out = p.communicate(timeout=100)[0]
    check("after kill -9 it goes on", p.returncode == 0, out)
    check("killed: the same losses", points("killed") == expected)

    write("long.conf", config(tokens="100M", heldout_steps=0))
    p = start("stopped", "-c", path("long.conf"))
    wait_for_lines(p, "stopped", 5)
    q = run("anchor", "-q", "-r", "-o", path("stopped"), code=1)
    check("one run to a folder", "another process" in q.stderr, q.stderr)
    p.send_signal(signal.SIGTERM)
    out = p.communicate(timeout=100)[0]
    check("a signal saves and ends well",
          p.returncode == 0 and "--resume" in out, out)
    n = len(points("stopped"))
    run("anchor", "-q", "-r", "-o", path("stopped"), "--steps", "2")
    check("and it goes on from there", len(points("stopped")) == n + 2)


# ---- the result ----


def exports():
    _, exact = gguf_file.read(path("whole/model-f32.gguf"))
    keys, half = gguf_file.read(path("whole/model-f16.gguf"))
    _, small = gguf_file.read(path("whole/model-q8_0.gguf"))
    original, _ = gguf_file.read(vocab)
    check("the vocabulary is copied", all(
        keys[k][0] == original[k][0] and np.array_equal(
            np.asarray(keys[k][1][1] if keys[k][0] == 9 else keys[k][1]),
            np.asarray(original[k][1][1] if keys[k][0] == 9
                       else original[k][1]))
        for k in original if k.startswith("tokenizer.")))
    check("name and context", keys["general.name"][1] == "tiny" and
          keys["llama.context_length"][1] == 128, keys.keys())
    check("all tensors", exact.keys() == half.keys() == small.keys() and
          len(exact) == 2 + 2 * 9, exact.keys())
    for name, t in exact.items():
        x = t.values()
        if x.ndim == 1:
            check(f"{name} stays F32", half[name].data == t.data and
                  small[name].data == t.data)
            continue
        check(f"{name}: F16", np.array_equal(
            half[name].values(), x.astype(np.float16).astype(np.float32)))
        step = np.abs(x.reshape(-1, 32)).max(1) / 127
        off = np.abs(small[name].values() - x).reshape(-1, 32).max(1)
        check(f"{name}: Q8_0", (off <= step * 0.57).all(), off.max())

    # Without landmarks windows are 126 tokens and the next.
    dev = tokens_of("dev").astype("<i4")
    losses = []
    for at in range(0, len(dev) - 1, 126):
        window = dev[at:at + 127]
        nll = decoder_run.run(path("whole/model-f32.gguf"), window,
                              cache="f32").nll
        losses += list(nll[window[:-1] != 2])
    curve = [float(r["loss"]) for r in points("whole") if r["set"] == "dev"]
    check("the decoder gives the trainer's held-out loss",
          abs(np.mean(losses) - curve[-1]) < 1e-4,
          f"{np.mean(losses)} and {curve[-1]}")

    run("export", path("cut"), "--type", "f16", "-o", path("one.gguf"))
    check("export of a type", read("one.gguf") == read("whole/model-f16.gguf"))
    os.unlink(path("cut/model-q8_0.gguf"))
    run("export", path("cut"))
    check("export of all", read("cut/model-q8_0.gguf") ==
          read("whole/model-q8_0.gguf"))
    run("export", path("cut"), "--type", "q5", code=2)
    run("export", code=2)
    run("export", path("none"), code=1)


def refused():
    for change, wanted in [
            ("colour = red\n", "no key colour"), ("rate = -1\n", "rate wants"),
            ("seed = 2.5\n", "seed wants"), ("batch = 4\n", "stands twice"),
            ("schedule = sine\n", "cosine or trapezoid"),
            ("nonsense\n", "key = value"), ("source = x\n", "source wants")]:
        write("bad.conf", config() + change)
        p = run("anchor", "-c", path("bad.conf"), "-o", path("bad"), code=2)
        line = (config() + change).count("\n")
        check(f"{change.strip()}: file, line, cause", wanted in p.stderr and
              f"bad.conf, line {line}" in p.stderr, p.stderr)
    write("bad.conf", config(kv_heads=3))
    run("anchor", "-c", path("bad.conf"), "-o", path("bad"), code=2)
    run("anchor", code=2)
    run("anchor", "-c", path("run.conf"), code=2)
    run("nonsense", code=2)
    run(code=2)
    check("nothing was made", not os.path.exists(path("bad")))
    # What --print-config shows, with what it leaves open, is a config.
    text = run("--print-config").stdout
    write("default.conf", text + f"tokenizer = {vocab}\n"
          f"source = {folder}/shards/a.mbtok 1\nbatch = 1\n")
    p = run("anchor", "-c", path("default.conf"), "-o", path("bad"), code=2)
    check("all its lines are good", "batch stands twice" in p.stderr, p.stderr)
    # Another shape than the checkpoint's.
    write("wide.conf", config(ffn=96))
    p = run("anchor", "-q", "-r", "-c", path("wide.conf"), "-o", path("cut"),
            code=1)
    check("names the weight", "ffn_gate" in p.stderr, p.stderr)


def evaluated():
    """The same figures of a run and of its F32 file, and what they are."""
    args = ["--csv", "--tasks", "3"]
    shards = [f"dev={folder}/shards/dev.mbtok"]
    whole = run("eval", *args, path("whole")).stdout
    rows = list(csv.DictReader(whole.splitlines()))
    exact = run("eval", *args, "--rows", "128",
                path("whole/model-f32.gguf"), *shards).stdout
    check("eval: file and run are one model", exact == whole, exact + whole)
    texts = {r["landmarks"]: r for r in rows if r["kind"] == "text"}
    curve = {r["set"]: r for r in points("whole")}
    for form, name in [("without", "dev"), ("with", "dev +landmarks")]:
        check(f"eval: {name} as the curve has it", all(
            abs(float(texts[form][a]) - float(curve[name][b])) < 2e-6
            for a, b in [("nats", "loss"), ("bits_per_byte",
                                            "bits_per_byte")]), whole)
        check("eval: perplexity", abs(
            np.exp(float(texts[form]["nats"])) -
            float(texts[form]["perplexity"])) < 1e-2, whole)
    tasks = [r for r in rows if r["kind"] == "task"]
    for task in ("passkey", "lookup", "copy", "list"):
        for form in ("without", "with"):
            mine = [r for r in tasks if r["name"] == task and
                    r["landmarks"] == form]
            check(f"eval: {task} {form}: all are the sum of the distances",
                  mine and mine[0]["distance"] == "all" and all(
                      int(mine[0][k]) == sum(int(r[k]) for r in mine[1:])
                      for k in ("answers", "exact", "targets", "right")) and
                  0 < int(mine[0]["answers"]) <= int(mine[0]["targets"]) and
                  int(mine[0]["exact"]) <= int(mine[0]["answers"]), whole)
    log = read("whole/log").decode()
    check("the log has the answers", 'set="passkey" ' in log and
          "exact=" in log, log)
    p = run("eval", "--windows", "1", "--tasks", "0", "--text-tokens", "128",
            path("whole"))
    check("eval: a table, no room for landmarks",
          "no landmarks" in p.stdout and len(p.stdout.splitlines()) == 4,
          p.stdout)
    run("eval", code=2)
    run("eval", path("whole/model-f32.gguf"), code=2)
    run("eval", path("whole"), "dev", code=2)
    run("eval", path("none.gguf"), *shards, code=1)


def recipe():
    """The anchor's own recipe on a few texts and a few steps: from texts to a
    table; called again it does nothing over."""
    with open(os.path.join(source, "tools", "sample", "inaugural.jsonl"),
              encoding="utf-8") as f:
        lines = f.readlines()
    os.makedirs(path("data/train"))
    os.makedirs(path("data/dev/wikitext-2"))
    for i, name in enumerate(("books", "wiki", "tech", "dict",
                              "textbooks-ccby", "speeches")):
        write(f"data/train/{name}.jsonl", "".join(lines[2 * i:2 * i + 2]))
        subprocess.run(["zstd", "-q", "--rm",
                        path(f"data/train/{name}.jsonl")], check=True)
    write("data/dev/books-dev.jsonl", lines[12])
    write("data/dev/wiki-small-dev.jsonl", lines[13])
    write("data/dev/wikitext-2/wiki.valid.tokens", lines[14])
    with open(os.path.join(source, "model", "weights", "anchor.conf"),
              encoding="utf-8") as f:
        conf = f.read()
    for key, value in (("layers", 1), ("width", 32), ("heads", 2),
                       ("kv_heads", 1), ("head_dim", 16), ("ffn", 32),
                       ("rows", 64), ("tokens", 2048)):
        conf, n = re.subn(rf"^{key} = .*$", f"{key} = {value}", conf,
                          flags=re.M)
        check(f"anchor.conf has {key}", n == 1)
    write("recipe.conf", conf)
    for again in (False, True):
        p = subprocess.run(
            [os.path.join(source, "tools", "train-anchor"), path("data"),
             path("recipe"), path("recipe.conf")], capture_output=True,
            text=True, timeout=100, check=False,
            env={**os.environ, "MEMBANK_BUILD": build})
        check(f"recipe: exit {p.returncode}", p.returncode == 0,
              p.stdout + p.stderr)
        check("recipe: shards are made once",
              ("documents" in p.stdout) != again, p.stdout)
        check("recipe: a table of all texts", all(
            f"\n{name} " in p.stdout
            for name in ("books-dev", "wiki-dev", "wikitext-dev", "passkey")),
            p.stdout)
    check("recipe: all that it promises", {
        "model-q8_0.gguf", "eval.csv", "eval.txt", "curve.svg"} <=
        set(os.listdir(path("recipe/run"))), os.listdir(path("recipe/run")))


def speed():
    p = run("anchor", "-c", path("run.conf"), "--speed", "--json")
    rows = [json.loads(line) for line in p.stdout.splitlines()]
    check("speed of three rounds", len(rows) == 3 and all(
        r["tokens_s"] > 0 and 0 < r["ratio"] < 5 for r in rows), p.stdout)


try:
    vocabularies()
    make_shards()
    losses = whole_run()
    pieces(losses)
    broken_off(losses)
    exports()
    evaluated()
    refused()
    recipe()
    speed()
finally:
    shutil.rmtree(folder, ignore_errors=True)
print("membank-train:", "passed" if failures == 0 else f"{failures} failures")
sys.exit(1 if failures else 0)
