#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/quality/bank_peer.py - memory blocks trained as PyTorch does it.

ctest: label=peer timeout=300

A small anchor, frozen, with blocks of two levels beside its feed-forward
layers: PyTorch's gradients of the blocks, and what lazy Adam makes of the
blocks in 20 steps, against the trainer's. A block's gradient is that of the
mean over the targets that went through it. Needs python3-torch."""
import json
import math
import os
import subprocess
import sys
import tempfile

try:
    import torch
except ImportError:
    print("python3-torch is not installed: no PyTorch to compare with")
    sys.exit(77)

source = os.environ["MB_SOURCE_DIR"]
sys.path.insert(0, os.path.join(source, "tests", "support"))
from peer_model import loss_of, make_windows  # noqa: E402

# Of the largest value of an array: float keeps 7 digits, sums over rows and
# layers cost two, and Adam divides by gradients that may be small.
GRADIENT_LIMIT = 2e-5
WEIGHT_LIMIT = 1e-4
STEPS = 20
N_ROWS = 90
SHAPE = [3, 32, 4, 2, 8, 48, 96]
ROWS = {1: 8, 2: 4}
PATHS = [[1, 11], [1, 11], [1, 12], [2, 21]]
RATE, WARMUP, FINAL, DECAY = 3e-3, 0.02, 0.01, 1e-3
BETA1, BETA2, EPS = 0.9, 0.95, 1e-8
program = os.path.join(os.environ["MB_BINARY_DIR"], "tests", "memory_steps")


def ours():
    with tempfile.NamedTemporaryFile(prefix="membank-memory-") as f:
        out = subprocess.run(
            [program, f.name,
             os.path.join(source, "model", "weights", "anchor.gguf")] +
            [str(x) for x in (STEPS, N_ROWS, *SHAPE)],
            check=True, capture_output=True, text=True).stdout
        flat = torch.frombuffer(bytearray(open(f.name, "rb").read()),
                                dtype=torch.float32)
    arrays, at = {}, 0
    for name, n, m in json.loads(out)["arrays"]:
        arrays[name] = flat[at:at + n * m].reshape(n, m).clone()
        at += n * m
    return arrays


def rate_at(step):
    """Linear rise, then a cosine to what is left at the end."""
    done, rise = step + 0.5, WARMUP * STEPS
    if done < rise:
        return RATE * done / rise
    wave = 0.5 * (1 + math.cos(math.pi * (done - rise) / (STEPS - rise)))
    return RATE * (FINAL + (1 - FINAL) * wave)


def gradients(anchor, blocks, tokens, targets):
    """By node: of the mean loss over the node's own targets."""
    for b in blocks.values():
        b.requires_grad_(True)
        b.grad = None
    total = 0
    count = {node: 0 for node in blocks}
    for i, path in enumerate(PATHS):
        n = int((targets[i] >= 0).sum())
        memory = {}
        for layer in range(1, SHAPE[0]):
            # [layer][gate|up|down][row] of each block of the path, one
            # below the other.
            part = [blocks[node].reshape(SHAPE[0] - 1, 3, -1, SHAPE[1])
                    [layer - 1] for node in path]
            memory[layer] = [torch.cat([p[k] for p in part])
                             for k in range(3)]
        total = total + n * loss_of(anchor, SHAPE, tokens[i:i + 1],
                                    targets[i:i + 1], False, memory)
        for node in path:
            count[node] += n
    total.backward()
    return {node: b.grad / count[node] for node, b in blocks.items()}


def worst(a, b):
    return float((a - b).abs().max() / b.abs().max())


def compare():
    arrays = ours()
    anchor = {k: v for k, v in arrays.items()
              if k.split(".")[0] not in ("start", "moment", "end")}
    blocks = {int(k.split(".")[1]): v for k, v in arrays.items()
              if k.startswith("start.")}
    assert len(blocks) == 5 and blocks[1].shape[0] == 2 * 3 * ROWS[1]
    tokens, targets = make_windows(len(PATHS), N_ROWS, SHAPE[-1], False)
    targets[:, :2] = -1
    m = {node: torch.zeros_like(b) for node, b in blocks.items()}
    v = {node: torch.zeros_like(b) for node, b in blocks.items()}
    failed = 0
    for step in range(STEPS):
        grads = gradients(anchor, blocks, tokens, targets)
        for node, g in grads.items():
            m[node] = BETA1 * m[node] + (1 - BETA1) * g
            v[node] = BETA2 * v[node] + (1 - BETA2) * g * g
            w = blocks[node].detach()
            move = m[node] / (1 - BETA1 ** (step + 1)) / (
                (v[node] / (1 - BETA2 ** (step + 1))).sqrt() + EPS)
            blocks[node] = w - rate_at(step) * (move + DECAY * w)
        if step > 0:
            continue
        # Of gate, up and down apart: their sizes differ.
        for node in blocks:
            def parts(x):
                return x.reshape(SHAPE[0] - 1, 3, -1, SHAPE[1])

            far = [worst(parts(arrays[f"moment.{node}"])[:, k],
                         parts(m[node])[:, k]) for k in range(3)]
            print(f"node {node}: gradients of gate, up, down differ by "
                  f"{far[0]:.1e}, {far[1]:.1e}, {far[2]:.1e} of the largest")
            failed += max(far) > GRADIENT_LIMIT
    for node, b in blocks.items():
        far = worst(arrays[f"end.{node}"], b)
        moved = float((b - arrays[f"start.{node}"]).abs().max())
        print(f"node {node}: after {STEPS} steps weights moved by up to "
              f"{moved:.3f} and differ by {far:.1e} of the largest")
        failed += far > WEIGHT_LIMIT or moved < 0.01
    return failed


sys.exit(1 if compare() else 0)
