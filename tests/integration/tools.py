#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/tools.py - the command-line tools against a real daemon.

ingest -> query -> dump -> verify, errors with their exit codes, and --help
against the man page of every program. ctest: timeout=180"""
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

build = os.environ["MB_BINARY_DIR"]
source = os.environ["MB_SOURCE_DIR"]
tools = {n: f"{build}/tools/{n}" for n in (
    "membank-ingest", "membank-query", "membank-dump", "membank-bench",
    "membank-eval", "membank-generate", "membank-train")}
daemon = f"{build}/daemon/membankd"
missing = [p for p in [*tools.values(), daemon] if not os.path.exists(p)]
if missing:
    print("not built:", *missing)
    sys.exit(77)

folder = tempfile.mkdtemp(prefix="mbtools")
endpoint = f"ipc://{folder}/s"
store = f"{folder}/store"
env = dict(os.environ, MEMBANK_ENDPOINT=endpoint, NO_COLOR="1")
failures = 0


def check(what, ok, shown=""):
    global failures
    if not ok:
        failures += 1
        print(f"FAILED: {what}\n{shown}")


def run(tool, *args, code=0, stdin=None):
    p = subprocess.run([tools[tool], *args], capture_output=True, text=True,
                       input=stdin, env=env, timeout=120)
    check(f"{tool} {' '.join(args)}: exit {p.returncode}, wanted {code}",
          p.returncode == code, p.stdout + p.stderr)
    return p


def lines_of(p):
    return [json.loads(line) for line in p.stdout.splitlines()]


def write(name, text):
    path = f"{folder}/{name}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(text if isinstance(text, bytes) else text.encode())
    return path


def start(*args):
    p = subprocess.Popen([daemon, "--store", store, "--listen", endpoint,
                          *args],
                         stderr=open(f"{folder}/log", "a"))
    end = time.time() + 30
    while not os.path.exists(f"{folder}/s"):
        if p.poll() is not None or time.time() > end:
            print(open(f"{folder}/log").read())
            sys.exit("the daemon does not start")
        time.sleep(0.02)
    return p


def help_and_man():
    """Every word of the help stands in the man page, in the same order."""
    def words(text):
        text = re.sub(r"\\f[BRI]|\\&", "", text)
        text = text.replace("\\-", "-").replace("\\(aq", "'")
        text = text.replace("\\(ha", "^").replace("\\(ti", "~")
        return text.replace("\\e", "\\").split()

    for name, path in [*tools.items(), ("membankd", daemon)]:
        texts = [subprocess.run([path, flag], capture_output=True, text=True)
                 for flag in ("--help", "--man")]
        check(f"{name} --help, --man", all(t.returncode == 0 for t in texts))
        shown = [w for w in words(texts[0].stdout)
                 if w not in ("Usage:", "Options:", "Examples:",
                              "Environment:", "Exit", "status:")]
        man = words("\n".join(
            line for line in texts[1].stdout.splitlines()
            if not line.startswith((".TH", ".SH", ".TP", ".PP", ".nf", ".fi"))))
        # Name and summary stand in another order at the top of the two.
        check(f"{name}: help and man page differ",
              sorted(shown) == sorted(man),
              f"only in help: {sorted(set(shown) - set(man))}\n"
              f"only in man: {sorted(set(man) - set(shown))}")
        version = subprocess.run([path, "--version"], capture_output=True,
                                 text=True)
        check(f"{name} --version", version.stdout.startswith(name + " "))


def usage_errors():
    for tool, args in [
            ("membank-ingest", []), ("membank-ingest", ["--wait", "x", "f"]),
            ("membank-ingest", ["--in-flight", "0", "f"]),
            ("membank-query", []), ("membank-query", ["-k", "0", "x"]),
            ("membank-query", ["--mode", "x", "y"]),
            ("membank-query", ["--filter", "{", "y"]),
            ("membank-query", ["--trec", "f", "y"]),
            ("membank-dump", []), ("membank-dump", ["stats"]),
            ("membank-dump", ["--store", "x", "nonsense"]),
            ("membank-dump", ["--store", "x", "node"]),
            ("membank-generate", []),
            ("membank-generate", ["-n", "0", "x"]),
            ("membank-generate", ["--top-p", "2", "x"]),
            ("membank-generate", ["--system", "y", "x"]),
            ("membank-generate", ["-r", "3", "x"]),
            ("membank-generate", ["--memory", "{", "-c", "a", "x"]),
            ("membank-generate", ["-r", "3", "--memory", "{}", "-c", "a",
                                  "x"]),
            ("membank-train", []), ("membank-train", ["nonsense"]),
            ("membank-bench", ["nonsense"])]:
        p = run(tool, *args, code=2)
        check(f"{tool} {args}: says how to use it", "usage: " in p.stderr,
              p.stderr)
    p = run("membank-query", "--tpo", "3", "x", code=2)
    check("a slip gets a hint", "did you mean --top?" in p.stderr, p.stderr)


def nobody_there():
    p = run("membank-query", "-e", f"ipc://{folder}/none", "-t", "0.2", "x",
            code=1)
    check("names endpoint and remedy", "/none" in p.stderr and
          "membankd --store" in p.stderr, p.stderr)
    p = run("membank-dump", "--store", f"{folder}/none", "stats", code=1)
    check("names the store", f"{folder}/none" in p.stderr, p.stderr)


def ingest():
    docs = [{"_id": f"d{i}", "title": f"Paper {i}", "year": 1900 + i % 100,
             "text": f"The {w} of the {v} was studied at length. " * 30}
            for i, (w, v) in enumerate(
                (w, v) for w in ("heat", "flow", "sound", "light", "wing")
                for v in ("plate", "cone", "engine", "wall", "river"))]
    body = "".join(json.dumps(d) + "\n" for d in docs)
    path = write("docs.jsonl.gz", gzip.compress(body.encode()))
    s = lines_of(run("membank-ingest", "-c", "papers", "--json", "--jsonl",
                     path))[0]
    check("all stored", s["stored"] == 25 and s["refused"] == 0 and
          s["complete"] and s["segments"] >= 25, s)
    # Again, and through standard input: nothing changes.
    for args, stdin in [(["--jsonl", path], None), (["--jsonl", "-"], body),
                        ([path], None)]:
        s = lines_of(run("membank-ingest", "-c", "papers", "--json", *args,
                         stdin=stdin))[0]
        check("unchanged", s["unchanged"] == 25 and s["segments"] == 0, s)
    # The later of two with one id wins, however the batches are cut.
    twice = "".join(json.dumps({"id": "same", "text": f"version {i}"}) + "\n"
                    for i in range(50))
    run("membank-ingest", "-c", "twice", "-b", "1", "--jsonl", "-", stdin=twice)
    p = run("membank-dump", "--store", store, "-c", "twice", "document", "same",
            "--text")
    check("the last one wins", p.stdout == "version 49", p.stdout)
    # A folder, whose pages lose their markup.
    write("site/a.html", "<title>Ä page</title><p>whales &amp; ships</p>")
    write("site/sub/b.md", "# Heading\n\nsome notes")
    write("site/c.txt", "plain text")
    write("site/d.bin", b"\0\1")
    s = lines_of(run("membank-ingest", "-c", "site", "--json",
                     f"{folder}/site"))[0]
    check("three files", s["stored"] == 3, s)
    d = lines_of(run("membank-dump", "--store", store, "-c", "site", "--json",
                     "document", f"{folder}/site/a.html"))[0]
    check("text of a page", d["text"] == "whales & ships" and
          d["title"] == "Ä page" and d["meta"]["format"] == "html", d)


def refusals():
    bad = (b'{"id":"1","text":"good"}\n'
           b'{"id":"2"}\n'
           b'not json\n'
           b'{"id":"3","text":"b\xffd"}\n'
           b'{"id":"","text":"the daemon refuses an empty id"}\n' +
           b'{"id":"' + b"x" * 500 + b'","text":"and one too long"}\n'
           b'{"id":"4","text":"good too"}\n')
    path = write("bad.jsonl", bad)
    p = run("membank-ingest", "-c", "bad", "--json", path, code=1)
    s = lines_of(p)[0]
    check("the good ones are stored", s["stored"] == 2 and s["refused"] == 5, s)
    for line in (2, 3, 4, 5, 6):
        check(f"line {line} is named", f"line {line}: " in p.stderr, p.stderr)
    s = lines_of(run("membank-ingest", "-c", "bad", "--json", "--repair", path,
                     code=1))[0]
    check("repaired", s["stored"] == 1 and s["refused"] == 4, s)
    p = run("membank-ingest", "-c", "bad", f"{folder}/nowhere", code=1)
    check("names the file", "nowhere" in p.stderr, p.stderr)
    p = run("membank-ingest", "-c", "papers", "--language", "german", path,
            code=1)
    check("other settings", "papers" in p.stderr, p.stderr)


def too_large():
    """Documents past what a message may have are named, the others stored."""
    docs = [{"id": str(i), "text": f"document number {i} " *
             (20000 if i in (3, 7) else 4000 if i == 5 else 100)}
            for i in range(10)]
    path = write("large.jsonl", "".join(json.dumps(d) + "\n" for d in docs))
    p = run("membank-ingest", "-c", "large", "--json", "--retry-for", "20",
            path, code=1)
    s = lines_of(p)[0]
    check("all but the two", s["stored"] == 8 and s["refused"] == 2 and
          s["complete"], s)
    for line in (4, 8):
        check("named with the remedy", re.search(
            f"large.jsonl, line {line}: .*max_message_bytes", p.stderr),
            p.stderr)


def vectors():
    docs = "".join(json.dumps({"id": str(i), "text": f"number {i}", "vector":
                               [1.0 if j == i else 0.1 for j in range(4)]}) +
                   "\n" for i in range(4))
    run("membank-ingest", "-c", "vec", "--embedding", "client", "--dim", "4",
        "--jsonl", "-", stdin=docs)
    r = lines_of(run("membank-query", "-c", "vec", "--json", "--mode", "dense",
                     "--vector", "[0,0,1,0]"))[0]
    check("nearest vector", r["hits"][0]["id"] == "2", r)
    p = run("membank-query", "-c", "vec", "--mode", "dense", "--vector",
            "[1,2]", code=1)
    check("dimensions are named", "4" in p.stderr and "2" in p.stderr, p.stderr)


def query():
    p = run("membank-query", "-c", "papers", "-k", "3", "heat of the engine")
    check("for people", re.match(r" 1  Paper 2  \[d2, segment 0\]\n    score",
                                 p.stdout) and "3 hits in" in p.stdout,
          p.stdout)
    check("no escapes without a terminal", "\033" not in p.stdout)
    r = lines_of(run("membank-query", "-c", "papers", "--json", "-f",
                     '{"year": {"$lt": 1905}}', "heat engine river"))[0]
    check("filtered", r["hits"] and all(
        h["meta"]["year"] < 1905 for h in r["hits"]), r)
    p = run("membank-query", "-c", "papers", "-", stdin="sound wall")
    check("question from standard input", "[d13, " in p.stdout, p.stdout)
    p = run("membank-query", "-c", "none", "x", code=1)
    check("no such collection", "none" in p.stderr, p.stderr)
    p = run("membank-query", "-c", "papers", "-f", '{"year": {"$near": 1}}',
            "x", code=1)
    check("the operator is named", "$near" in p.stderr, p.stderr)
    queries = write("q.jsonl", "".join(
        json.dumps({"_id": f"q{i}", "text": t}) + "\n" for i, t in
        enumerate(["light cone", "wing plate", "flow river"] * 20)))
    run("membank-query", "-c", "papers", "-k", "5", "--queries", queries,
        "--trec", f"{folder}/run")
    rows = [line.split() for line in open(f"{folder}/run")]
    best = {r[0]: r[2] for r in rows if r[3] == "1"}
    check("a run in the order of the file", list(best) ==
          [f"q{i}" for i in range(60)] and best["q0"] == "d16" and
          best["q1"] == "d20" and best["q2"] == "d9", best)
    check("documents once", all(
        len({r[2] for r in rows if r[0] == q}) ==
        len([r for r in rows if r[0] == q]) for q in best))
    r = lines_of(run("membank-query", "-c", "papers", "--queries", queries,
                     "--json"))
    check("JSON lines with ids", [x["query"] for x in r] == list(best), r[:1])


def dump(live):
    when = "live" if live else "closed"
    args = ["--store", store]
    c = {x["name"]: x for x in lines_of(run("membank-dump", *args, "--json",
                                            "collections"))}
    check(f"{when}: collections", c["papers"]["documents"] == 25 and
          c["vec"]["embedding"] == "client", c)
    for view in (["stats"], ["banks"], ["contexts"], ["block", "1"]):
        run("membank-dump", *args, *view)
        lines_of(run("membank-dump", *args, "--json", *view))
    args += ["-c", "papers"]
    d = lines_of(run("membank-dump", *args, "--json", "documents"))
    check(f"{when}: documents in order of id", [x["id"] for x in d] ==
          sorted(f"d{i}" for i in range(25)), d[:1])
    p = run("membank-dump", *args, "documents", "--limit", "2")
    check(f"{when}: says that there are more", "2 of 25" in p.stdout, p.stdout)
    d = lines_of(run("membank-dump", *args, "--json", "document", "d3"))[0]
    check(f"{when}: spans cover the text", d["spans"][0]["start"] == 0 and
          d["spans"][-1]["end"] == len(d["text"].encode()), d)
    s = lines_of(run("membank-dump", *args, "--json", "segment",
                     str(d["first_segment"])))[0]
    check(f"{when}: a segment", s["document"] == "d3" and
          any(t["term"] == "heat" for t in s["terms"]), s)
    run("membank-dump", *args, "segment", str(d["first_segment"]))
    run("membank-dump", *args, "document", "d3")
    run("membank-dump", *args, "document", "none", code=1)
    run("membank-dump", *args, "segment", "99999", code=1)
    v = lines_of(run("membank-dump", "--store", store, "--json", "verify"))
    check(f"{when}: verify", v[-1]["broken"] == 0 and v[-1]["records"] > 100, v)
    p = run("membank-dump", "--store", store, "tree", code=1)
    check(f"{when}: asks which", "papers" in p.stderr, p.stderr)


def tree_and_page():
    run("membank-ingest", "-c", "speeches", "--jsonl",
        f"{source}/tools/sample/inaugural.jsonl", "--wait", "searchable")
    args = ["--store", store, "-c", "speeches"]
    end = time.time() + 60
    while subprocess.run([tools["membank-dump"], *args, "tree"],
                         capture_output=True).returncode != 0:
        if time.time() > end:
            check("a tree within a minute", False)
            return
        time.sleep(0.1)
    nodes = lines_of(run("membank-dump", *args, "--json", "tree"))
    check("the root counts all", nodes[0]["parent"] is None and
          nodes[0]["vectors"] > 500 and nodes[0]["terms"], nodes[:1])
    n = lines_of(run("membank-dump", *args, "--json", "--limit", "5", "node",
                     str(nodes[-1]["node"])))[0]
    check("segments of a leaf", len(n["segments"]) == 5, n)
    run("membank-dump", *args, "node", "0")
    run("membank-dump", *args, "node", "999999", code=1)
    evil = "</script><img src=x onerror=alert(1)>'\"&<!--"
    run("membank-ingest", "-c", "evil", "--jsonl", "-", stdin=json.dumps(
        {"id": evil, "title": evil, "text": evil}))
    run("membank-dump", "--store", store, "html", f"{folder}/page.html")
    page = open(f"{folder}/page.html", encoding="utf-8").read()
    check("one file", not re.search(r'(src|href)\s*=\s*["\']?(https?:)?//',
                                    page))
    check("nothing ends the script", page.count("</script>") == 2 and
          "<img" not in page)
    data = json.loads(re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page,
        re.S).group(1))
    c = {x["name"]: x for x in data["collections"]}
    check("texts as they are", c["evil"]["docs"][0] == [evil, evil])
    check("clusters with terms", len(c["speeches"]["nodes"]) > 5 and
          all(n[2] for n in c["speeches"]["nodes"]))
    text = sum(len(s[2].encode()) for x in data["collections"]
               for n in x["nodes"] for s in n[3])
    check("passages are there", text > 10000, text)
    run("membank-dump", "--store", store, "--max-text", "2000", "html",
        f"{folder}/small.html")
    check("the text is bounded", os.path.getsize(f"{folder}/small.html") <
          os.path.getsize(f"{folder}/page.html") - text // 2)
    p = run("membank-dump", "--store", store, "html", f"{folder}/no/x.html",
            code=1)
    check("names the file", "no/x.html" in p.stderr, p.stderr)


def bench():
    s = lines_of(run("membank-bench", "--json", "-c", "papers", "-n", "20",
                     "-j", "2", "--seconds", "0.2", "--vectors", "1000",
                     "--dim", "16", "--drop", "query"))[0]
    names = [r["name"] for r in s["series"]]
    check("series", names == ["ping", "text hybrid", "text dense",
                              "text lexical", "text hybrid, 2 clients",
                              "vector 1000 x 16", "vector, 2 clients"], s)
    check("recall", s["series"][5]["recall"] >= 0.95, s["series"][5])
    s = lines_of(run("membank-bench", "--json", "-n", "5", "-j", "2",
                     "--seconds", "0.2", "--drop", "put"))[0]
    check("puts", len(s["series"]) == 3, s)
    c = lines_of(run("membank-dump", "--store", store, "--json", "collections"))
    check("dropped", not [x for x in c if x["name"].startswith("bench")], c)


def generate():
    prompt = "The history of the world is"
    args = ["-n", "12", "--temperature", "0", prompt]
    whole = run("membank-generate", *args)
    check("text", whole.stdout.count(" ") > 5 and whole.stdout.endswith("\n"),
          whole.stdout)
    check("figures", "12 generated" in whole.stderr and
          "ended by: length" in whole.stderr, whole.stderr)
    p = run("membank-generate", "--stream", "-q", *args)
    check("a stream has the same text", p.stdout == whole.stdout, p.stdout)
    check("quiet", p.stderr == "", p.stderr)
    p = run("membank-generate", "-n", "12", "--temperature", "0", "-q", "-",
            stdin=prompt)
    check("standard input", p.stdout == whole.stdout, p.stdout)
    s = lines_of(run("membank-generate", "--json", *args))[0]
    check("json", s["text"] == whole.stdout[:-1] and s["tokens"] == 12, s)
    end = s["text"].index(" ", 4)
    p = run("membank-generate", "-q", "-s", s["text"][end:end + 4], *args)
    check("stop", p.stdout == s["text"][:end] + "\n", p.stdout)
    a, b, c = (run("membank-generate", "-q", "-n", "20", "--seed", seed,
                   "--temperature", "2", prompt).stdout
               for seed in ("5", "5", "6"))
    check("seeds", a == b != c, [a, b, c])
    p = run("membank-generate", "-c", "papers", "-r", "2", "-n", "3",
            "heat of the engine")
    check("used passages", p.stderr.count("used: ") == 2, p.stderr)
    s = lines_of(run("membank-generate", "--json", "-c", "papers", "--memory",
                     '{"retrieve": 1, "query": "heat"}', "-n", "3", "x"))[0]
    check("memory", len(s["used"]["segments"]) == 1, s)
    p = run("membank-generate", "-c", "nowhere", "-r", "2", "x", code=1)
    check("names the collection", "nowhere" in p.stderr, p.stderr)
    p = run("membank-generate", "--chat", "x", code=1)
    check("no chat model", "template" in p.stderr, p.stderr)


def stop(p):
    p.send_signal(signal.SIGTERM)
    check("the daemon ends by itself", p.wait(timeout=30) == 0)


help_and_man()
usage_errors()
nobody_there()
server = start()
try:
    ingest()
    refusals()
    vectors()
    query()
    generate()
    dump(True)
    tree_and_page()
    bench()
    stop(server)
    dump(False)
    server = start("--max-message-bytes", "128K")
    too_large()
    stop(server)
finally:
    if server.poll() is None:
        server.kill()
        server.wait()
    if failures:
        print(open(f"{folder}/log").read()[-3000:])
    shutil.rmtree(folder, ignore_errors=True)
print(f"{failures} failures")
sys.exit(1 if failures else 0)
