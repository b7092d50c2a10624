#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/support/ref_decoder.py - a forward pass in float64, to compare with.

    ref_decoder.py MODEL.gguf TOKENS.i32 LOGITS.f64

Over the stored weights as they are, so that what is measured is arithmetic,
not quantisation. Shares no code with the product, and follows the papers:
RMSNorm (Zhang and Sennrich 2019), RoPE (Su et al. 2021), YaRN (Peng et al.
2023, section 3), grouped queries (Ainslie et al. 2023), SwiGLU (Shazeer 2020).
T tokens, H heads, K key-value heads, D width of a head."""
import sys

import numpy as np

import gguf_file


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


class Decoder:
    def __init__(self, path):
        keys, tensors = gguf_file.read(path)
        self.arch = keys["general.architecture"][1]
        self.keys = {name: value for name, (_, value) in keys.items()}
        self.w = {name: t.values().astype(np.float64)
                  for name, t in tensors.items()}
        self.eps = self.key("attention.layer_norm_rms_epsilon")
        self.n_heads = self.key("attention.head_count")
        self.n_kv_heads = self.key("attention.head_count_kv", self.n_heads)
        self.head_dim = self.key("attention.key_length",
                                 self.key("embedding_length") // self.n_heads)
        self.frequencies, self.magnitude = self.rotation()

    def key(self, name, missing=None):
        return self.keys.get(f"{self.arch}.{name}", missing)

    # ---- positions ----

    def rotation(self):
        """Frequencies (D/2) and what cosines and sines are scaled by."""
        n = self.key("rope.dimension_count", self.head_dim)
        base = float(self.key("rope.freq_base", 10000.0))
        # As llama.cpp: a factor without a type is linear, and so is the old
        # name of the factor; each type may come with a magnitude.
        scaling = self.key("rope.scaling.type", "linear")
        factor = float(self.key("rope.scaling.factor",
                                self.key("rope.scale_linear", 1.0)))
        magnitude = float(self.key("rope.scaling.attn_factor", 1.0))
        f = base ** (-np.arange(0, n, 2) / n)
        if scaling == "linear":
            f = f / factor
        elif scaling == "yarn":
            context = self.key("rope.scaling.original_context_length",
                               self.key("context_length"))
            f = self.yarn(f, n, base, factor, context)
            magnitude *= 1 + 0.1 * np.log(factor)
        if "rope_freqs.weight" in self.w:
            f = f / self.w["rope_freqs.weight"]
        return f, magnitude

    @staticmethod
    def yarn(f, n, base, factor, context):
        """Pairs of more than 32 turns within the original context stay, those
        of less than 1 are stretched; between them a ramp over the pairs."""
        def pair(turns):
            return n * np.log(context / (turns * 2 * np.pi)) / (
                2 * np.log(base))
        low = max(0, np.floor(pair(32)))
        high = min(n - 1, np.ceil(pair(1)))
        ramp = (np.arange(n // 2) - low) / max(0.001, high - low)
        stretched = ramp.clip(0, 1)
        return f / factor * stretched + f * (1 - stretched)

    def rotate(self, x):
        """x (T, heads, D): row t is at position t."""
        angle = np.arange(len(x))[:, None, None] * self.frequencies
        cos = np.cos(angle) * self.magnitude
        sin = np.sin(angle) * self.magnitude
        half = len(self.frequencies)
        out = x.copy()
        if self.arch == "llama":  # neighbours form a pair
            a, b = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        else:  # the halves do
            a, b = slice(0, half), slice(half, 2 * half)
        out[..., a] = x[..., a] * cos - x[..., b] * sin
        out[..., b] = x[..., a] * sin + x[..., b] * cos
        return out

    # ---- layers ----

    def linear(self, x, name):
        y = x @ self.w[name + ".weight"].T
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y

    def attention(self, x, block):
        n = len(x)
        heads = {}
        for part, count in (("q", self.n_heads), ("k", self.n_kv_heads),
                            ("v", self.n_kv_heads)):
            h = self.linear(x, f"{block}attn_{part}")
            h = h.reshape(n, count, self.head_dim)
            norm = self.w.get(f"{block}attn_{part}_norm.weight")
            heads[part] = h if norm is None else rms_norm(h, norm, self.eps)
        q, k = self.rotate(heads["q"]), self.rotate(heads["k"])
        group = self.n_heads // self.n_kv_heads
        k = np.repeat(k, group, axis=1)
        v = np.repeat(heads["v"], group, axis=1)
        score = np.einsum("thd,shd->hts", q, k) / np.sqrt(self.head_dim)
        score += np.triu(np.full((n, n), -np.inf), 1)
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        mixed = np.einsum("hts,shd->thd", weight, v).reshape(n, -1)
        return self.linear(mixed, block + "attn_output")

    def feed_forward(self, x, block):
        gate = self.linear(x, block + "ffn_gate")
        up = self.linear(x, block + "ffn_up")
        return self.linear(gate / (1 + np.exp(-gate)) * up, block + "ffn_down")

    def hidden(self, tokens):
        """Rows after the last norm, (T, d_model)."""
        x = self.w["token_embd.weight"][tokens]
        for i in range(self.key("block_count")):
            block = f"blk.{i}."
            norm = self.w[block + "attn_norm.weight"]
            x = x + self.attention(rms_norm(x, norm, self.eps), block)
            norm = self.w[block + "ffn_norm.weight"]
            x = x + self.feed_forward(rms_norm(x, norm, self.eps), block)
        return rms_norm(x, self.w["output_norm.weight"], self.eps)

    def logits(self, tokens):
        """(T, n_vocab)."""
        output = self.w.get("output.weight", self.w["token_embd.weight"])
        return self.hidden(tokens) @ output.T


def nll(logits, tokens):
    """-log p of each token from the second on, in nats, (T - 1)."""
    logits = logits[:-1] - logits[:-1].max(-1, keepdims=True)
    norm = np.log(np.exp(logits).sum(-1))
    return norm - logits[np.arange(len(logits)), tokens[1:]]


def main():
    tokens = np.fromfile(sys.argv[2], "<i4")
    Decoder(sys.argv[1]).logits(tokens).astype("<f8").tofile(sys.argv[3])
    return 0


if __name__ == "__main__":
    sys.exit(main())
