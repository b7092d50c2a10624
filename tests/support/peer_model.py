# SPDX-License-Identifier: Apache-2.0
"""tests/support/peer_model.py - the trainer's model and windows in PyTorch.

Windows are those of train_steps.c. Imported where torch is known to be there."""
import torch


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


def loss_of(w, shape, tokens, targets, landmarks, memory=None):
    """Mean loss. memory: by layer, rows of gate, up and down, each (r, d)."""
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
        silu = torch.nn.functional.silu
        y = (silu(h @ w[b + "ffn_gate.weight"].T)
             * (h @ w[b + "ffn_up.weight"].T)) @ w[b + "ffn_down.weight"].T
        if memory and i in memory:
            gate, up, down = memory[i]
            y = y + (silu(h @ gate.T) * (h @ up.T)) @ down
        x = x + y
    logits = norm(x, w["output_norm.weight"]) @ w["token_embd.weight"].T
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1),
        ignore_index=-1)
