#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/fault/bank_kill.py - kill -9 while a memory bank is trained.

Training is killed at random moments until it is done, and after each the store
must verify. In the end every block must have the bytes that an unbroken
training gives it: not only the loss is the same. MB_KILLS says how often (50),
MB_SEED which moments. ctest: label=slow timeout=1800"""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.environ["MB_SOURCE_DIR"], "tests",
                                "support"))
from bankstore import dump, hashes, make, make_model
from session import check

build = os.environ["MB_BINARY_DIR"]
folder = tempfile.mkdtemp(prefix="membank-bank-kill-")
MODEL = os.path.join(folder, "small.gguf")
N_KILLS = int(os.environ.get("MB_KILLS", "50"))
SEED = int(os.environ.get("MB_SEED", "1"))
EPOCHS = 8


def start(place):
    return subprocess.Popen(
        [os.path.join(build, "tools", "membank-train"), "bank", "-s",
         os.path.join(place, "store"), "-C", "c", "--tokenizer", MODEL,
         "--threads", "1", "--checkpoint", "1", "-q", "--json"],
        stdout=subprocess.PIPE)


def finish(process):
    out = process.communicate()[0]
    check(process.returncode == 0, "membank-train", process.returncode)
    return json.loads(out)


def verify(place):
    broken = [p for p in dump(place, "verify") if p.get("broken")]
    check(not broken, "verify", broken)


def prepare(name):
    place = os.path.join(folder, name)
    daemon, _ = make(place, MODEL, epochs=EPOCHS)
    daemon.stop()
    return place


def main():
    dice = random.Random(SEED)
    print("seed", SEED)
    make_model(MODEL)
    place = prepare("unbroken")
    begin = time.monotonic()
    whole = finish(start(place))
    took = time.monotonic() - begin
    check(whole["finished"], whole)
    begin = time.monotonic()
    check(finish(start(place))["tokens"] == 0, "nothing is left")
    idle = time.monotonic() - begin
    want = hashes(place)
    # Moments that are spread over all of it, whatever the machine's speed; few
    # are before the first step.
    place = prepare("killed")
    kills = 0
    while kills < N_KILLS:
        process = start(place)
        try:
            process.wait(timeout=0.8 * idle +
                         dice.uniform(0, 2) * (took - idle) / N_KILLS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            verify(place)
            continue
        # It was done before: once more, from the start.
        finish(process)
        check(hashes(place) == want, "the same bytes", kills)
        shutil.rmtree(place)
        place = prepare("killed")
    done = finish(start(place))
    check(done["finished"], done)
    verify(place)
    check(hashes(place) == want, "the same bytes", hashes(place), want)
    for key in ("before", "after", "held_out", "nodes", "gained"):
        check(done[key] == whole[key], key, done, whole)
    print(f"{kills} kills, held-out loss {whole['before']:.6f} to "
          f"{done['after']:.6f}, as unbroken; {took:.1f} s unbroken")


try:
    main()
finally:
    shutil.rmtree(folder, ignore_errors=True)
