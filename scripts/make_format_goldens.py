#!/usr/bin/env python3
"""Writes kernels/testdata/formats.bin: random blocks of every weight format with the elements that
PyPI's gguf reads from them. An oracle made apart from this project; run it again only to add cases.

    pip install gguf==0.19.0
    python3 scripts/make_format_goldens.py

The file, little-endian, is a list of cases until its end:

    u32 GGUF type code    u32 elements    u32 bytes    the bytes    the elements as f32

The first case of a dtype has random bits, the second all bytes 0xFF and the third all bytes 0x00
(with scales still finite), so that every field is seen at both its ends.
"""

import struct
from pathlib import Path

import gguf
import numpy as np

OUT = Path(__file__).resolve().parent.parent / "kernels" / "testdata" / "formats.bin"

# Where the half-precision fields of a block begin; they are drawn apart to keep them finite.
HALVES = {
    "F32": [],
    "F16": [0],
    "BF16": [],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
}


def blocks(rng, name, count, fill):
    """`count` blocks of raw bytes, random or all equal to `fill`."""
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    if name in ("F32", "BF16"):
        values = rng.standard_normal(count).astype("<f4").view("<u4")
        halves = (values >> 16).astype("<u2")
        return values.view(np.uint8) if name == "F32" else halves.view(np.uint8)
    raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
    if fill is not None:
        raw[:] = fill
    for at in HALVES[name]:
        # Any finite half but for the first block's, which is subnormal.
        bits = rng.integers(0, 0x7C00, count).astype("<u2")
        bits |= (rng.integers(0, 2, count) << 15).astype("<u2")
        bits[0] &= 0x83FF
        raw[:, at : at + 2] = bits.view(np.uint8).reshape(count, 2)
    return raw.reshape(-1)


def main():
    rng = np.random.default_rng(20_260_101)
    with OUT.open("wb") as out:
        for name in HALVES:
            code = gguf.GGMLQuantizationType[name]
            length, _ = gguf.GGML_QUANT_SIZES[code]
            count = {1: 33, 32: 6, 256: 3}[length]
            for fill in (None, 0xFF, 0x00):
                raw = blocks(rng, name, count, fill)
                values = gguf.quants.dequantize(raw.reshape(1, -1), code).astype("<f4").reshape(-1)
                assert np.isfinite(values).all()
                out.write(struct.pack("<III", code, values.size, raw.size))
                out.write(raw.tobytes() + values.tobytes())


if __name__ == "__main__":
    main()
