#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the models of tests/fuzz/corpus/model that fuzzing starts from.

Usage: make_model_corpus.py FOLDER. Needs numpy. Same files every time: one for
each architecture, for each type of weights, for each scaling of rotation, and
some that are nearly right."""
import os
import struct
import subprocess
import sys

here = os.path.dirname(os.path.abspath(__file__))
maker = os.path.join(here, "..", "support", "make_model.py")
SMALL = {"--n-layers": 1, "--d-model": 32, "--n-heads": 2, "--n-kv-heads": 1,
         "--head-dim": 16, "--d-ff": 32, "--n-vocab": 270, "--n-ctx": 64, "--tied": None}
MODELS = {
    "llama": {"--d-model": 24, "--head-dim": 8},
    "untied": {"--tied": False},
    "qwen2": {"--arch": "qwen2"},
    "qwen3": {"--arch": "qwen3", "--head-dim": 24},
    "f16": {"--type": "F16"},
    "bf16": {"--type": "BF16"},
    "q8_0": {"--type": "Q8_0"},
    "q5_0": {"--type": "Q5_0"},
    "q4_0": {"--type": "Q4_0"},
    "q4_k": {"--type": "Q4_K", "--d-model": 256},
    "q6_k": {"--type": "Q6_K", "--d-model": 256},
    "linear": {"--scaling": "linear"},
    "yarn": {"--scaling": "yarn"},
    "llama3": {"--scaling": "llama3"},
    "odd-shape": {"--d-model": 40, "--n-heads": 5, "--n-kv-heads": 5,
                  "--head-dim": 8, "--d-ff": 7},
}


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    for name, changes in MODELS.items():
        args = []
        for key, v in {**SMALL, **changes}.items():
            if v is not False:
                args += [key] if v is None else [key, str(v)]
        path = os.path.join(folder, name)
        subprocess.run([sys.executable, maker, "random", *args, path],
                       check=True, stdout=subprocess.DEVNULL)
    base = open(os.path.join(folder, "q8_0"), "rb").read()
    near = {
        "cut": base[:len(base) * 2 // 3],
        "nan-weights": base[:-4096] + b"\xff" * 4096,
        "no-heads": number(base, b"llama.attention.head_count_kv", 0),
        "many-layers": number(base, b"llama.block_count", 1000),
        "no-context": number(base, b"llama.context_length", 0),
        "wide": number(base, b"llama.embedding_length", 2 ** 31),
    }
    for name, content in near.items():
        with open(os.path.join(folder, name), "wb") as f:
            f.write(content)


def number(content, key, v):
    """The file with another u32 under a key."""
    at = content.index(key) + len(key) + 4
    return content[:at] + struct.pack("<I", v) + content[at + 4:]


main()
