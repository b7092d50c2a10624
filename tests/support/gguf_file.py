# SPDX-License-Identifier: Apache-2.0
"""tests/support/gguf_file.py - GGUF files: keys, tensors, and tensor types.

The reader knows what our tests write and what the bundled model has. Every
tensor type has an encoder and a decoder; the encoders of the quantised types
are plain (no search for the best scale): what counts is that the bytes are
legal and that all readers make the same numbers of them.

    keys, tensors = gguf_file.read(path)      # tensors: name -> Tensor
    gguf_file.write(path, keys, tensors)      # keys: name -> (kind, value)
"""
import struct
from dataclasses import dataclass

import numpy as np

# ---- values ----

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
PACK = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f",
        BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def string_bytes(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value_bytes(kind, value):
    """value of an ARRAY: (kind of the elements, elements)."""
    if kind == STRING:
        return string_bytes(value)
    if kind == ARRAY:
        element, items = value
        head = struct.pack("<IQ", element, len(items))
        if element in PACK:
            return head + np.asarray(items, "<" + PACK[element]).tobytes()
        return head + b"".join(value_bytes(element, item) for item in items)
    return struct.pack("<" + PACK[kind], value)


# ---- types of tensors ----
# Encoders take (n_blocks, values of a block) in float32 and give
# (n_blocks, bytes of a block); decoders go back.


def half_bytes(x):
    """(n) as binary16, (n, 2) bytes."""
    return x.astype("<f2").reshape(-1, 1).view(np.uint8)


def halves(data):
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def inverse(x):
    """1 / x, and 0 for 0."""
    return np.divide(1, x, out=np.zeros_like(x), where=x != 0)


def encode_f32(x):
    return x.astype("<f4").view(np.uint8)


def decode_f32(data):
    return data.view("<f4")


def encode_f16(x):
    return x.astype("<f2").view(np.uint8)


def decode_f16(data):
    return halves(data)


def encode_bf16(x):
    bits = np.ascontiguousarray(x, "<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # ties to even
    return rounded.astype("<u2").view(np.uint8)


def decode_bf16(data):
    return (data.view("<u2").astype("<u4") << 16).view("<f4")


def encode_q8_0(x):
    scale = np.abs(x).max(1) / 127
    code = np.rint(x * inverse(scale)[:, None]).astype(np.int8)
    return np.hstack([half_bytes(scale), code.view(np.uint8)])


def decode_q8_0(data):
    return halves(data[:, :2]) * data[:, 2:].copy().view(np.int8)


def encode_q4_0(x):
    largest = np.take_along_axis(
        x, np.abs(x).argmax(1)[:, None], axis=1)[:, 0]
    scale = largest / -8
    code = np.floor(x * inverse(scale)[:, None] + 8.5).clip(0, 15)
    code = code.astype(np.uint8)
    return np.hstack([half_bytes(scale), code[:, :16] | code[:, 16:] << 4])


def decode_q4_0(data):
    packed = data[:, 2:]
    code = np.hstack([packed & 15, packed >> 4]).astype(np.float32)
    return halves(data[:, :2]) * (code - 8)


def encode_q5_0(x):
    largest = np.take_along_axis(
        x, np.abs(x).argmax(1)[:, None], axis=1)[:, 0]
    scale = largest / -16
    code = np.floor(x * inverse(scale)[:, None] + 16.5).clip(0, 31)
    code = code.astype(np.uint8)
    fifth = np.packbits(code >> 4, axis=1, bitorder="little")
    low = code & 15
    return np.hstack([half_bytes(scale), fifth,
                      low[:, :16] | low[:, 16:] << 4])


def decode_q5_0(data):
    fifth = np.unpackbits(data[:, 2:6], axis=1, bitorder="little")
    packed = data[:, 6:]
    code = np.hstack([packed & 15, packed >> 4]) | fifth << 4
    return halves(data[:, :2]) * (code.astype(np.float32) - 16)


def encode_q4_k(x):
    """8 runs of 32 values; each has a scale and a minimum of 6 bits."""
    runs = x.reshape(-1, 8, 32)
    low = np.minimum(runs.min(2), 0)
    step = (runs.max(2) - low) / 15
    d = (step.max(1) / 63).astype("<f2").astype(np.float32)
    d_min = (-low.min(1) / 63).astype("<f2").astype(np.float32)
    scale = np.rint(step * inverse(d)[:, None]).clip(0, 63).astype(np.uint8)
    minimum = np.rint(-low * inverse(d_min)[:, None]).clip(0, 63)
    minimum = minimum.astype(np.uint8)
    factor = inverse(d[:, None] * scale)[:, :, None]
    code = np.rint((runs + (d_min[:, None] * minimum)[:, :, None]) * factor)
    code = code.clip(0, 15).astype(np.uint8)
    packed = np.empty((len(x), 12), np.uint8)
    packed[:, 0:4] = scale[:, :4] | scale[:, 4:] >> 4 << 6
    packed[:, 4:8] = minimum[:, :4] | minimum[:, 4:] >> 4 << 6
    packed[:, 8:12] = scale[:, 4:] & 15 | minimum[:, 4:] << 4
    pairs = code[:, 0::2] | code[:, 1::2] << 4
    return np.hstack([half_bytes(d), half_bytes(d_min), packed,
                      pairs.reshape(-1, 128)])


def decode_q4_k(data):
    d, d_min = halves(data[:, 0:2]), halves(data[:, 2:4])
    packed = data[:, 4:16]
    scale = np.hstack([packed[:, 0:4] & 63,
                       packed[:, 8:12] & 15 | packed[:, 0:4] >> 6 << 4])
    minimum = np.hstack([packed[:, 4:8] & 63,
                         packed[:, 8:12] >> 4 | packed[:, 4:8] >> 6 << 4])
    pairs = data[:, 16:].reshape(-1, 4, 32)
    code = np.empty((len(data), 8, 32), np.float32)
    code[:, 0::2] = pairs & 15
    code[:, 1::2] = pairs >> 4
    values = (d * scale)[:, :, None] * code - (d_min * minimum)[:, :, None]
    return values.reshape(-1, 256)


def encode_q6_k(x):
    """16 runs of 16 values with an int8 scale each; codes of 6 bits."""
    runs = x.reshape(-1, 16, 16)
    step = np.abs(runs).max(2) / 31
    d = (step.max(1) / 127).astype("<f2").astype(np.float32)
    scale = np.rint(step * inverse(d)[:, None]).clip(-128, 127)
    factor = inverse(d[:, None] * scale)[:, :, None]
    code = np.rint(runs * factor).clip(-32, 31).astype(np.int8) + 32
    # Two halves of 128; in each, four quarters of 32 share their bytes.
    q = code.astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate([q[:, :, 0] & 15 | (q[:, :, 2] & 15) << 4,
                          q[:, :, 1] & 15 | (q[:, :, 3] & 15) << 4], axis=2)
    high = (q[:, :, 0] >> 4 | q[:, :, 1] >> 4 << 2 |
            q[:, :, 2] >> 4 << 4 | q[:, :, 3] >> 4 << 6)
    return np.hstack([low.reshape(-1, 128), high.reshape(-1, 64),
                      scale.astype(np.int8).view(np.uint8), half_bytes(d)])


def decode_q6_k(data):
    low = data[:, :128].reshape(-1, 2, 2, 32)
    high = data[:, 128:192].reshape(-1, 2, 32)
    scale = data[:, 192:208].copy().view(np.int8)
    d = halves(data[:, 208:210])
    code = np.empty((len(data), 2, 4, 32), np.int16)
    code[:, :, 0] = low[:, :, 0] & 15 | (high & 3) << 4
    code[:, :, 1] = low[:, :, 1] & 15 | (high >> 2 & 3) << 4
    code[:, :, 2] = low[:, :, 0] >> 4 | (high >> 4 & 3) << 4
    code[:, :, 3] = low[:, :, 1] >> 4 | (high >> 6) << 4
    runs = (code.reshape(-1, 16, 16) - 32).astype(np.float32)
    return ((d * scale)[:, :, None] * runs).reshape(-1, 256)


@dataclass(frozen=True)
class Type:
    name: str
    number: int
    block_values: int
    block_bytes: int
    encode: callable
    decode: callable


TYPES = {t.name: t for t in [
    Type("F32", 0, 1, 4, encode_f32, decode_f32),
    Type("F16", 1, 1, 2, encode_f16, decode_f16),
    Type("BF16", 30, 1, 2, encode_bf16, decode_bf16),
    Type("Q8_0", 8, 32, 34, encode_q8_0, decode_q8_0),
    Type("Q4_0", 2, 32, 18, encode_q4_0, decode_q4_0),
    Type("Q4_K", 12, 256, 144, encode_q4_k, decode_q4_k),
    Type("Q6_K", 14, 256, 210, encode_q6_k, decode_q6_k),
    Type("Q5_0", 6, 32, 22, encode_q5_0, decode_q5_0),
]}
BY_NUMBER = {t.number: t for t in TYPES.values()}


@dataclass
class Tensor:
    type_number: int
    shape: tuple  # rows first
    data: bytes

    def values(self):
        """The stored numbers in float32, of the tensor's shape."""
        t = BY_NUMBER[self.type_number]
        blocks = np.frombuffer(self.data, np.uint8)
        return t.decode(blocks.reshape(-1, t.block_bytes)).reshape(self.shape)


def encode(values, type_name):
    """A Tensor of float values; the last axis is a multiple of the block."""
    t = TYPES[type_name]
    x = np.ascontiguousarray(values, np.float32)
    if x.shape[-1] % t.block_values != 0:
        raise ValueError(f"{x.shape[-1]} columns do not divide into blocks "
                         f"of {t.block_values} of {type_name}")
    blocks = t.encode(x.reshape(-1, t.block_values))
    return Tensor(t.number, x.shape, np.ascontiguousarray(blocks).tobytes())


# ---- files ----


def write(path, keys, tensors):
    """keys: name -> (kind, value); tensors: name -> Tensor."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for name, (kind, value) in keys.items():
        head += (string_bytes(name) + struct.pack("<I", kind) +
                 value_bytes(kind, value))
    offset = 0
    for name, t in tensors.items():
        dims = t.shape[::-1]
        head += string_bytes(name) + struct.pack("<I", len(dims))
        head += struct.pack(f"<{len(dims)}Q", *dims)
        head += struct.pack("<IQ", t.type_number, offset)
        offset += len(t.data) + -len(t.data) % 32
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % 32))
        for t in tensors.values():
            f.write(t.data)
            f.write(bytes(-len(t.data) % 32))


class Reader:
    def __init__(self, data):
        self.data = data
        self.at = 0

    def number(self, letter):
        value, = struct.unpack_from("<" + letter, self.data, self.at)
        self.at += struct.calcsize("<" + letter)
        return value

    def string(self):
        size = self.number("Q")
        self.at += size
        return self.data[self.at - size:self.at].decode("utf-8", "replace")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.number(PACK[kind])
        element, n = self.number("I"), self.number("Q")
        if element == STRING:
            return element, [self.string() for _ in range(n)]
        items = np.frombuffer(self.data, "<" + PACK[element], n, self.at)
        self.at += items.nbytes
        return element, items

    def tensor_info(self):
        name = self.string()
        dims = [self.number("Q") for _ in range(self.number("I"))]
        return name, tuple(dims[::-1]), self.number("I"), self.number("Q")


def read(path):
    """Keys and tensors, in the form that write takes."""
    with open(path, "rb") as f:
        r = Reader(f.read())
    if r.data[:4] != b"GGUF":
        raise ValueError(f"{path}: no GGUF file")
    r.at = 8
    n_tensors, n_keys = r.number("Q"), r.number("Q")
    keys = {}
    for _ in range(n_keys):
        name = r.string()
        kind = r.number("I")
        keys[name] = (kind, r.value(kind))
    infos = [r.tensor_info() for _ in range(n_tensors)]
    alignment = keys["general.alignment"][1] if "general.alignment" in keys \
        else 32
    base = r.at + -r.at % alignment
    tensors = {}
    for name, shape, number, offset in infos:
        t = BY_NUMBER[number]
        size = int(np.prod(shape)) // t.block_values * t.block_bytes
        start = base + offset
        tensors[name] = Tensor(number, shape, r.data[start:start + size])
    return keys, tensors
