#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/quality/train_peer.py - training as PyTorch does it.

ctest: label=peer;slow timeout=900

The same first weights, windows and AdamW give the same losses for 20 steps, on
plain windows and on windows with landmarks (grouped softmax by its definition,
as a matrix of weights). With --speed ROUNDS: tokens a second of both at the
anchor's shape, one after the other. Needs python3-torch."""
import json
import os
import subprocess
import sys
import tempfile
import time

try:
    import torch
except ImportError:
    print("python3-torch is not installed: no PyTorch to compare with")
    sys.exit(77)

sys.path.insert(0, os.path.join(os.environ["MB_SOURCE_DIR"], "tests",
                                "support"))
from peer_model import loss_of, make_windows  # noqa: E402

LOSS_LIMIT = 1e-4  # of the loss
STEPS = 20
TINY = [2, 32, 4, 2, 8, 48, 96]
ANCHOR = [8, 256, 8, 4, 32, 704, 8192]
program = os.path.join(os.environ["MB_BINARY_DIR"], "tests", "train_steps")


def ours(shape, steps, windows, rows, threads, landmarks):
    """What train_steps prints, and the first weights as tensors."""
    with tempfile.NamedTemporaryFile(prefix="membank-train-") as f:
        out = subprocess.run(
            [program, f.name] + [str(x) for x in (
                steps, windows, rows, threads, int(landmarks), *shape)],
            check=True, capture_output=True, text=True).stdout
        result = json.loads(out)
        flat = torch.frombuffer(bytearray(open(f.name, "rb").read()),
                                dtype=torch.float32)
    weights, at = {}, 0
    for name, n, m in result["weights"]:
        weights[name] = flat[at:at + n * m].reshape(n, m).clone()
        at += n * m
    return result, weights


def theirs(weights, shape, steps, windows, rows, landmarks):
    tokens, targets = make_windows(windows, rows, shape[-1], landmarks)
    for t in weights.values():
        t.requires_grad_(True)
    decayed = [t for name, t in weights.items()
               if t.shape[0] > 1 and name != "token_embd.weight"]
    rest = [t for name, t in weights.items()
            if t.shape[0] == 1 or name == "token_embd.weight"]
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1},
         {"params": rest, "weight_decay": 0.0}],
        lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses, seconds = [], 0.0
    for i in range(steps):
        begin = time.perf_counter()
        adam.zero_grad()
        loss = loss_of(weights, shape, tokens, targets, landmarks)
        loss.backward()
        size = torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        adam.step()
        if i > 0:
            seconds += time.perf_counter() - begin
        losses.append((loss.item(), float(size)))
    return losses, (steps - 1) * windows * rows / max(seconds, 1e-9)


def compare():
    failed = 0
    for landmarks in (False, True):
        result, weights = ours(TINY, STEPS, 3, 150, 2, landmarks)
        want, _ = theirs(weights, TINY, STEPS, 3, 150, landmarks)
        worst = max(abs(a[0] - b[0]) / b[0]
                    for a, b in zip(result["steps"], want))
        norms = max(abs(a[1] - b[1]) / b[1]
                    for a, b in zip(result["steps"], want))
        print(f"landmarks {landmarks}: {STEPS} steps, loss "
              f"{want[0][0]:.5f} to {want[-1][0]:.5f}, worst difference "
              f"{worst:.2e} of the loss, {norms:.2e} of the gradient's norm")
        failed += worst > LOSS_LIMIT
    return failed


def speed(rounds):
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    print("torch", torch.__version__, "threads", threads)
    for _ in range(rounds):
        result, weights = ours(ANCHOR, 4, 8, 640, threads, False)
        _, there = theirs(weights, ANCHOR, 4, 8, 640, False)
        print(f"membank {result['tokens_s']:.0f} tokens/s, "
              f"{result['flops_s'] / 1e9:.1f} GFLOP/s, "
              f"{100 * result['flops_s'] / result['sgemm_flops_s']:.0f}% of "
              f"sgemm's {result['sgemm_flops_s'] / 1e9:.1f}, "
              f"{result['bytes'] / 1e6:.0f} MB; PyTorch {there:.0f} tokens/s; "
              f"ratio {result['tokens_s'] / there:.2f}")


if len(sys.argv) > 2 and sys.argv[1] == "--speed":
    speed(int(sys.argv[2]))
else:
    sys.exit(1 if compare() else 0)
