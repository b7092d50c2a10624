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


def make_windows(n, rows, vocabulary, landmarks):
    """Tokens, targets (-1: none) as train_steps makes them."""
    tokens = torch.tensor([[(i * 131 + r * r * 7 + r) % vocabulary
                            for r in range(rows + 2)] for i in range(n)])
    targets = tokens[:, 1:rows + 1].clone()
    if landmarks:
        marks = torch.tensor([r % 64 == 40 for r in range(rows + 2)])
        tokens[:, marks] = vocabulary - 1
        targets = tokens[:, 1:rows + 1].clone()
        for r in range(rows):
            if r % 64 == 40:
                targets[:, r] = -1
            if r % 64 == 39:
                targets[:, r] = tokens[:, r + 2] if r + 2 <= rows else -1
    return tokens[:, :rows], targets


def norm(x, w):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * w


def rope(x):
    """Pairs (2i, 2i + 1) of (windows, heads, rows, dim)."""
    rows, dim = x.shape[-2:]
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64)
                            / dim)
    angle = torch.arange(rows, dtype=torch.float64)[:, None] * frequency
    c, s = angle.cos().float(), angle.sin().float()
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)


def grouped(z):
    """Weights of grouped softmax from logits (..., rows, rows)."""
    rows = z.shape[-1]
    is_mark = torch.tensor([r % 64 == 40 for r in range(rows)])
    block = torch.cumsum(is_mark.int(), 0) - is_mark.int()
    causal = torch.ones(rows, rows).tril().bool()
    same = block[:, None] == block[None, :]
    local = causal & same & ~is_mark
    gate = causal & ~same & is_mark
    shared = torch.where(local | gate, z, torch.tensor(-torch.inf))
    shared = torch.softmax(shared, -1)
    shared = torch.nan_to_num(shared)
    a = torch.where(local, shared, torch.tensor(0.0))
    for b in range(int(block.max())):
        mark = int(torch.nonzero((block == b) & is_mark)[0])
        inside = (block == b) & ~is_mark
        s = torch.softmax(z[..., inside], -1)
        later = (block > b)[:, None]
        part = torch.zeros_like(z)
        part[..., inside] = s * shared[..., mark:mark + 1]
        a = a + torch.where(later, part, torch.tensor(0.0))
    return a


def loss_of(w, shape, tokens, targets, landmarks):
    layers, d, heads, kv, dim = shape[:5]
    n, rows = tokens.shape
    x = w["token_embd.weight"][tokens]
    for i in range(layers):
        b = f"blk.{i}."

        def split(h, name, count):
            return (h @ w[b + name + ".weight"].T).reshape(
                n, rows, count, dim).transpose(1, 2)

        h = norm(x, w[b + "attn_norm.weight"])
        q = rope(split(h, "attn_q", heads))
        k = rope(split(h, "attn_k", kv)).repeat_interleave(heads // kv, 1)
        v = split(h, "attn_v", kv).repeat_interleave(heads // kv, 1)
        if landmarks:
            o = grouped(q @ k.transpose(-1, -2) / dim ** 0.5) @ v
        else:
            o = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True) if hasattr(
                    torch.nn.functional, "scaled_dot_product_attention") \
                else torch.softmax((q @ k.transpose(-1, -2) / dim ** 0.5)
                                   .masked_fill(torch.ones(rows, rows).triu(1)
                                                .bool(), -torch.inf), -1) @ v
        x = x + o.transpose(1, 2).reshape(n, rows, -1) \
            @ w[b + "attn_output.weight"].T
        h = norm(x, w[b + "ffn_norm.weight"])
        gate = h @ w[b + "ffn_gate.weight"].T
        x = x + (torch.nn.functional.silu(gate)
                 * (h @ w[b + "ffn_up.weight"].T)) @ w[b + "ffn_down.weight"].T
    logits = norm(x, w["output_norm.weight"]) @ w["token_embd.weight"].T
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1),
        ignore_index=-1)


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
