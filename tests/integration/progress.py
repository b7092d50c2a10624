#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/integration/progress.py - the bar of membank-ingest tells the truth.

membank-ingest runs on a pseudo-terminal; every frame that it draws is read as a
person would: the part done only grows, says the same as bytes, documents and
the bar itself, and ends at 100% of what lies on disk. Documents are all of one
size, so that their count tells how far it really is. ctest: timeout=180"""
import fcntl
import json
import os
import pty
import random
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time

build = os.environ["MB_BINARY_DIR"]
tool = f"{build}/tools/membank-ingest"
if not os.path.exists(tool):
    print("not built:", tool)
    sys.exit(77)
N_DOCUMENTS = 2000
N_FILES = 40
WORDS = 300  # a document, about 2 kB
# Small requests, one at a time: long enough for frames to be seen. No fits at the
# same time, which would make it last.
SLOWLY = ["-b", "32K", "-n", "1", "--embedding", "none"]
MIN_FRAMES = 4  # between the first and the last
WAIT_S = 60
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
failures = 0


def check(what, ok, shown=""):
    global failures
    if not ok:
        failures += 1
        print(f"FAILED: {what}\n{shown}")


def on_terminal(columns, args, stdin=None):
    """What a terminal gets to see, and the exit code."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ,
                struct.pack("HHHH", 24, columns, 0, 0))
    env = dict(os.environ, TERM="xterm")
    env.pop("COLUMNS", None)
    p = subprocess.Popen([tool, *args], stdin=stdin or slave, stdout=slave,
                         stderr=slave, env=env)
    os.close(slave)
    seen = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other side has closed
            break
        if not part:
            break
        seen += part
    os.close(master)
    return seen.decode(), p.wait(timeout=WAIT_S)


def frames_of(seen):
    """Each line as it was drawn; then what stands below the last."""
    frames = seen.split("\r\x1b[K")
    check("text before the first frame", frames[0] == "", seen)
    last, _, rest = frames[-1].partition("\r\n")
    return frames[1:-1] + [last], rest


FRAME = re.compile(
    r"(?:\[(?P<bar>#*\.*)\])? +(?P<percent>\d+)%  (?P<done>[\d.]+) (?P<du>\w+)"
    r" of (?P<total>[\d.]+) (?P<tu>\w+)  (?P<docs>[\d,]+) docs  "
    r"(?P<rate>[\d.]+ \w+)/s of text  (?P<left>-:--|\d+:\d\d) left")


def check_frames(name, frames, size, tolerance):
    before = -1
    docs_before = -1
    n_between = 0
    for frame in frames:
        m = FRAME.fullmatch(frame)
        if not m:
            check(f"{name}: a frame", False, repr(frame))
            return
        percent = int(m["percent"])
        done = float(m["done"]) * UNITS[m["du"]]
        total = float(m["total"]) * UNITS[m["tu"]]
        docs = int(m["docs"].replace(",", ""))
        check(f"{name}: goes back", percent >= before and docs >= docs_before,
              frames)
        before, docs_before = percent, docs
        # Shown with one digit behind the point.
        rounding = 0.06 * UNITS[m["tu"]]
        check(f"{name}: the total is {size}", abs(total - size) <= rounding,
              frame)
        check(f"{name}: bytes and percent differ",
              abs(done - size * percent / 100) <= size / 100 + rounding, frame)
        if m["bar"]:
            part = m["bar"].count("#") / len(m["bar"])
            check(f"{name}: bar and percent differ",
                  abs(part * 100 - percent) <= 100 / len(m["bar"]) + 1, frame)
        real = docs / N_DOCUMENTS * 100
        check(f"{name}: it is at {real:.0f}%",
              abs(percent - real) <= tolerance, frame)
        if 0 < percent < 100:
            n_between += 1
            check(f"{name}: no rate", not m["rate"].startswith("0 "), frame)
            check(f"{name}: no time left", m["left"] != "-:--", frame)
    check(f"{name}: few frames", n_between >= MIN_FRAMES, frames)
    check(f"{name}: ends at 100%", before == 100 and
          docs_before == N_DOCUMENTS, frames[-1])
    check(f"{name}: nothing is left", frames[-1].endswith(" 0:00 left"),
          frames[-1])


def start(folder):
    with open(f"{folder}/log", "w", encoding="utf-8") as log:
        daemon = subprocess.Popen(
            [f"{build}/daemon/membankd", "--store", f"{folder}/store",
             "--listen", f"ipc://{folder}/s"], stderr=log)
    until = time.monotonic() + WAIT_S
    while not os.path.exists(f"{folder}/s"):
        if daemon.poll() is not None or time.monotonic() > until:
            sys.exit(open(f"{folder}/log", encoding="utf-8").read())
        time.sleep(0.01)
    return daemon


def make_inputs(folder):
    """The same documents as JSONL, packed, and as files (several each)."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(3000)]
    texts = [" ".join(rng.choices(words, k=WORDS)) for _ in range(N_DOCUMENTS)]
    with open(f"{folder}/in.jsonl", "w", encoding="utf-8") as f:
        for i, text in enumerate(texts):
            f.write(json.dumps({"id": f"{i:06}", "text": text}) + "\n")
    subprocess.run(["zstd", "-q", "-k", f"{folder}/in.jsonl"], check=True)
    for i, text in enumerate(texts):
        where = f"{folder}/tree/{i % N_FILES:02}"
        os.makedirs(where, exist_ok=True)
        with open(f"{where}/{i:06}.txt", "w", encoding="utf-8") as f:
            f.write(text)
    return sum(map(len, texts))


def test_bars(folder, connect, text_bytes):
    # Points by which the percent may be off: one batch; within a packed file
    # the place is an estimate.
    for name, path, tolerance in [
            ("lines", f"{folder}/in.jsonl", 2),
            ("packed", f"{folder}/in.jsonl.zst", 5),
            ("folder", f"{folder}/tree", 2)]:
        size = (text_bytes if os.path.isdir(path) else os.path.getsize(path))
        seen, code = on_terminal(100, [*connect, "-c", name, *SLOWLY, path])
        check(f"{name}: exit {code}", code == 0, seen)
        frames, rest = frames_of(seen)
        check_frames(name, frames, size, tolerance)
        check(f"{name}: a summary", rest.startswith(
            f"{N_DOCUMENTS:,} documents (0 replaced, "), rest)
        print(f"{name}: {len(frames)} frames; {frames[len(frames) // 2]}")


def test_others(folder, connect):
    path = f"{folder}/in.jsonl"
    # Standard input has no end that is known: figures, no percent.
    with open(path, "rb") as f:
        pipe = subprocess.Popen(["cat"], stdin=f, stdout=subprocess.PIPE)
        seen, code = on_terminal(100, [*connect, "-c", "pipe", *SLOWLY,
                                       "--jsonl", "-"], pipe.stdout)
        pipe.stdout.close()
        pipe.wait(timeout=WAIT_S)
    frames, rest = frames_of(seen)
    check("pipe: figures", code == 0 and len(frames) > MIN_FRAMES and all(
        re.fullmatch(r"[\d.]+ k?M?B of text  [\d,]+ docs  [\d.]+ k?M?B/s", x)
        for x in frames[:-1]), seen)
    check("pipe: a summary behind the cleared line", frames[-1].startswith(
        f"{N_DOCUMENTS:,} documents (0 replaced, "), rest)
    # No line may run over, or the next frame leaves it standing.
    for columns in (80, 50, 20):
        seen, code = on_terminal(columns, [*connect, "-c", "narrow", *SLOWLY,
                                           path])
        frames, _ = frames_of(seen)
        check(f"{columns} columns", code == 0 and frames and
              max(map(len, frames)) < columns, seen)
    # Dense search is waited for with the time that it takes.
    seen, code = on_terminal(100, [*connect, "-c", "fitted", "--wait",
                                   "searchable", path])
    check("waiting", code == 0 and re.search(
        r"waiting for dense search  0:0\d\r", seen), seen)
    p = subprocess.run([tool, *connect, "-c", "lines", path],
                       capture_output=True, text=True, timeout=WAIT_S)
    check("no terminal, no frames", p.returncode == 0 and p.stderr == "" and
          "\x1b" not in p.stdout, p.stderr + p.stdout)


def main():
    with tempfile.TemporaryDirectory(prefix="mbtest") as folder:
        text_bytes = make_inputs(folder)
        daemon = start(folder)
        try:
            connect = ["-e", f"ipc://{folder}/s"]
            test_bars(folder, connect, text_bytes)
            test_others(folder, connect)
        finally:
            daemon.terminate()
            check("the daemon's end", daemon.wait(timeout=WAIT_S) == 0)
    if failures:
        sys.exit(f"{failures} failures")


main()
