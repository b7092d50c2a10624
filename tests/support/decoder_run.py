# SPDX-License-Identifier: Apache-2.0
"""tests/support/decoder_run.py - run decoder_rows and read what it wrote.

    tokens = random_tokens(100, n_vocab=512, seed=1)
    r = run("model.gguf", tokens, chunk=7, threads=2)
    r.logits, r.hidden, r.nll, r.info
"""
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass

import numpy as np

PROGRAM = os.path.join(os.environ["MB_BINARY_DIR"], "tests", "decoder_rows")
FLAGS = {"cache": "-c", "prefill": "-p", "chunk": "-n", "threads": "-t",
         "level": "-l", "mates": "-m", "greedy": "-g"}


@dataclass
class Result:
    logits: np.ndarray  # (T, vocabulary), NaN where not asked for
    hidden: np.ndarray  # (T, width)
    nll: np.ndarray     # (T - 1)
    info: dict


class Failed(Exception):
    """The text is "status: cause"."""


def random_tokens(n, n_vocab, seed):
    return np.random.default_rng(seed).integers(3, n_vocab, n).astype("<i4")


def run(model, tokens, scored=True, timeout=100, **options):
    """None if this CPU has not the level that is asked for."""
    with tempfile.TemporaryDirectory(prefix="membank-rows-") as folder:
        np.asarray(tokens, "<i4").tofile(folder + "/tokens")
        command = [PROGRAM, "-o", folder + "/out"]
        for name, value in options.items():
            command += [FLAGS[name], str(value)]
        command += [] if scored else ["-u"]
        p = subprocess.run([*command, model, folder + "/tokens"], text=True,
                           capture_output=True, timeout=timeout, check=False)
        if p.returncode == 77:
            return None
        if p.returncode != 0:
            raise Failed(p.stderr.strip())
        arrays = [np.fromfile(f"{folder}/out.{name}", "<f4").reshape(
            len(tokens), -1) for name in ("logits", "hidden", "nll")]
    return Result(arrays[0], arrays[1], arrays[2][:-1, 0],
                  json.loads(p.stdout))


def score(model, text, window, threads=1):
    """Token ids of a text, and the program's report on windows of it."""
    with tempfile.TemporaryDirectory(prefix="membank-rows-") as folder:
        with open(folder + "/text", "w", encoding="utf-8") as f:
            f.write(text)
        p = subprocess.run(
            [PROGRAM, "-x", "-w", str(window), "-t", str(threads), "-o",
             folder + "/out", model, folder + "/text"], text=True,
            capture_output=True, timeout=600, check=False)
        if p.returncode != 0:
            raise Failed(p.stderr.strip())
        return np.fromfile(folder + "/out.tokens", "<i4"), json.loads(p.stdout)


def distance(logits, reference):
    """Largest difference, as part of the reference's range; rows of NaN are
    not compared, but some row must be."""
    rows = ~np.isnan(logits).all(1)
    if not rows.any() or np.isnan(logits[rows]).any():
        return np.inf
    difference = np.abs(logits[rows] - reference[rows]).max()
    return difference / (reference.max() - reference.min())


def same_bits(a, b):
    """Equal bit for bit, but where one is a row of NaN."""
    rows = ~np.isnan(a).any(-1) & ~np.isnan(b).any(-1)
    return bool(rows.any()) and np.array_equal(
        a[rows].view("<u4"), b[rows].view("<u4"))
