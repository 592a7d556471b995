#!/usr/bin/env python3
"""Trains testdata/models/micro-relu-q8.gguf: a llama-shaped model with gated ReLU whose neurons are
zero because it learned so, not because random numbers have a sign.

A byte-level vocabulary, two layers, some 150,000 weights; the texts are this repository's own. The
forward and backward passes are written out below in numpy, in the order of the mathematics. The
loss has an L1 term on the gates' activations, which is what makes models with ReLU sparse. The seed
is fixed; another build of numpy may round differently and so give another model, equally good.

    python3 scripts/train_relu.py testdata/models/micro-relu-q8.gguf [--steps 1500]
"""

import argparse
import pathlib
import struct

import numpy as np

LAYERS, WIDTH, HEADS, HEAD, NEURONS, CONTEXT = 2, 64, 2, 32, 256, 256
BATCH, LENGTH = 16, 64
EPSILON, BASE, L1 = 1e-5, 10_000.0, 2e-3
START, END = 257, 258
VOCAB = 260


def tokens_of(text):
    """Bytes, with the one merge of the vocabulary: a space and a t."""
    ids, data = [], text.encode()
    i = 0
    while i < len(data):
        if data[i : i + 2] == b" t":
            ids.append(256)
            i += 2
        else:
            ids.append(data[i])
            i += 1
    return ids


def corpus(root):
    texts = []
    for name in ("SPEC.md", "README.md", "CONTRIBUTING.md"):
        texts.append((root / name).read_text())
    for path in sorted((root / "engine/src").rglob("*.rs")):
        texts.append(path.read_text())
    return np.array([i for text in texts for i in [START, *tokens_of(text), END]], dtype=np.int64)


def new_weights(rng):
    def matrix(rows, cols):
        return (rng.standard_normal((rows, cols)) / np.sqrt(cols)).astype(np.float32)

    weights = {"token_embd": matrix(VOCAB, WIDTH), "output_norm": np.ones(WIDTH, np.float32)}
    for layer in range(LAYERS):
        for name, rows, cols in (
            ("attn_q", HEADS * HEAD, WIDTH),
            ("attn_k", HEADS * HEAD, WIDTH),
            ("attn_v", HEADS * HEAD, WIDTH),
            ("attn_output", WIDTH, HEADS * HEAD),
            ("ffn_gate", NEURONS, WIDTH),
            ("ffn_up", NEURONS, WIDTH),
            ("ffn_down", WIDTH, NEURONS),
        ):
            weights[f"blk.{layer}.{name}"] = matrix(rows, cols)
        for name in ("attn_norm", "ffn_norm"):
            weights[f"blk.{layer}.{name}"] = np.ones(WIDTH, np.float32)
    return weights


def norm(x, gain):
    factor = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)
    return x * factor * gain, (x, factor, gain)


def norm_back(dy, saved, grads, name):
    x, factor, gain = saved
    grads[name] += (dy * x * factor).reshape(-1, WIDTH).sum(0)
    dy = dy * gain
    return factor * dy - x * factor**3 * (dy * x).mean(-1, keepdims=True)


def product(x, weights, name):
    return x @ weights[name].T


def product_back(dy, x, weights, grads, name):
    grads[name] += dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return dy @ weights[name]


def angles(length):
    frequency = BASE ** (-np.arange(0, HEAD, 2) / HEAD)
    angle = np.outer(np.arange(length), frequency)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(x, cos, sin):
    a, b = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = a * cos - b * sin, a * sin + b * cos
    return out


def heads(x):
    return x.reshape(*x.shape[:2], HEADS, HEAD).transpose(0, 2, 1, 3)


def joined(x):
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], HEADS * HEAD)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def layer_forward(x, weights, at, cos, sin, mask):
    h, first = norm(x, weights[at + "attn_norm"])
    q = rotate(heads(product(h, weights, at + "attn_q")), cos, sin)
    k = rotate(heads(product(h, weights, at + "attn_k")), cos, sin)
    v = heads(product(h, weights, at + "attn_v"))
    p = softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(HEAD) + mask)
    attended = joined(p @ v)
    x = x + product(attended, weights, at + "attn_output")
    g, second = norm(x, weights[at + "ffn_norm"])
    gate = np.maximum(product(g, weights, at + "ffn_gate"), 0)
    up = product(g, weights, at + "ffn_up")
    x = x + product(gate * up, weights, at + "ffn_down")
    return x, (h, first, q, k, v, p, attended, g, second, gate, up)


def layer_back(dx, saved, weights, grads, at, cos, sin, l1):
    h, first, q, k, v, p, attended, g, second, gate, up = saved
    inner = product_back(dx, gate * up, weights, grads, at + "ffn_down")
    dgate = (inner * up + l1) * (gate > 0)
    dg = product_back(dgate, g, weights, grads, at + "ffn_gate")
    dg = dg + product_back(inner * gate, g, weights, grads, at + "ffn_up")
    dx = dx + norm_back(dg, second, grads, at + "ffn_norm")
    out = heads(product_back(dx, attended, weights, grads, at + "attn_output"))
    dv = p.transpose(0, 1, 3, 2) @ out
    dp = out @ v.transpose(0, 1, 3, 2)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(HEAD)
    dq, dk = rotate(ds @ k, cos, -sin), rotate(ds.transpose(0, 1, 3, 2) @ q, cos, -sin)
    dh = 0
    for name, part in (("attn_q", dq), ("attn_k", dk), ("attn_v", dv)):
        dh = dh + product_back(joined(part), h, weights, grads, at + name)
    return dx + norm_back(dh, first, grads, at + "attn_norm")


def loss_and_grads(ids, weights):
    inputs, targets = ids[:, :-1], ids[:, 1:]
    length = inputs.shape[1]
    cos, sin = angles(length)
    mask = np.triu(np.full((length, length), -1e9, np.float32), 1)
    x, saved = weights["token_embd"][inputs], []
    for layer in range(LAYERS):
        x, kept = layer_forward(x, weights, f"blk.{layer}.", cos, sin, mask)
        saved.append(kept)
    h, last = norm(x, weights["output_norm"])
    p = softmax(product(h, weights, "token_embd"))
    count = targets.size
    picked = np.take_along_axis(p, targets[..., None], -1)
    grads = {name: np.zeros_like(value) for name, value in weights.items()}
    np.put_along_axis(p, targets[..., None], picked - 1, -1)
    dx = product_back(p / count, h, weights, grads, "token_embd")
    dx = norm_back(dx, last, grads, "output_norm")
    l1 = np.float32(L1 / count)
    for layer in reversed(range(LAYERS)):
        dx = layer_back(dx, saved[layer], weights, grads, f"blk.{layer}.", cos, sin, l1)
    np.add.at(grads["token_embd"], inputs.reshape(-1), dx.reshape(-1, WIDTH))
    zeros = np.mean([(kept[9] == 0).mean() for kept in saved])
    return -np.log(picked).mean(), zeros, grads


def train(data, steps):
    rng = np.random.default_rng(1)
    weights = new_weights(rng)
    mean = {name: np.zeros_like(value) for name, value in weights.items()}
    square = {name: np.zeros_like(value) for name, value in weights.items()}
    for step in range(1, steps + 1):
        starts = rng.integers(0, len(data) - LENGTH - 1, BATCH)
        ids = np.stack([data[start : start + LENGTH + 1] for start in starts])
        loss, zeros, grads = loss_and_grads(ids, weights)
        rate = 4e-3 * min(1, step / 100) * (0.05 + 0.95 * (1 - step / steps))
        for name, grad in grads.items():
            mean[name] = 0.9 * mean[name] + 0.1 * grad
            square[name] = 0.99 * square[name] + 0.01 * grad * grad
            m, s = mean[name] / (1 - 0.9**step), square[name] / (1 - 0.99**step)
            weights[name] -= (rate * m / (np.sqrt(s) + 1e-8)).astype(np.float32)
        if step % 100 == 0 or step == steps:
            zeros = f"{100 * zeros:.1f} % of gates are zero"
            print(f"step {step}: loss {loss:.3f}, {zeros}", flush=True)
    return weights


def q8_0(matrix):
    blocks = matrix.reshape(-1, 32)
    scale = (np.abs(blocks).max(1) / 127).astype(np.float16)
    inverse = np.where(scale == 0, 0, 1 / np.where(scale == 0, 1, scale).astype(np.float32))
    quants = np.clip(np.rint(blocks * inverse[:, None]), -127, 127).astype(np.int8)
    out = np.empty(len(blocks), dtype=[("d", "<f2"), ("q", "i1", 32)])
    out["d"], out["q"] = scale, quants
    return out.tobytes()


def byte_chars():
    """The characters that stand for bytes in byte-level vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key, kind, value):
    code = {"u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8}
    pack = {
        "u32": lambda v: struct.pack("<I", v),
        "i32": lambda v: struct.pack("<i", v),
        "f32": lambda v: struct.pack("<f", v),
        "bool": lambda v: struct.pack("<B", v),
        "str": string,
    }
    if kind.startswith("["):
        kind = kind[1:-1]
        body = struct.pack("<IQ", code[kind], len(value)) + b"".join(map(pack[kind], value))
        return string(key) + struct.pack("<I", 9) + body
    return string(key) + struct.pack("<I", code[kind]) + pack[kind](value)


def metadata():
    chars = byte_chars()
    names = [*chars, chars[32] + "t", "<|startoftext|>", "<|endoftext|>", "<unused259>"]
    return [
        entry("general.architecture", "str", "llama"),
        entry("general.name", "str", "micro-relu, trained on this repository's texts"),
        entry("general.file_type", "u32", 7),
        entry("general.quantization_version", "u32", 2),
        entry("llama.context_length", "u32", CONTEXT),
        entry("llama.embedding_length", "u32", WIDTH),
        entry("llama.block_count", "u32", LAYERS),
        entry("llama.feed_forward_length", "u32", NEURONS),
        entry("llama.attention.head_count", "u32", HEADS),
        entry("llama.attention.head_count_kv", "u32", HEADS),
        entry("llama.attention.layer_norm_rms_epsilon", "f32", EPSILON),
        entry("llama.rope.dimension_count", "u32", HEAD),
        entry("llama.rope.freq_base", "f32", BASE),
        entry("llama.hidden_activation", "str", "relu"),
        entry("tokenizer.ggml.model", "str", "gpt2"),
        entry("tokenizer.ggml.pre", "str", "gpt-2"),
        entry("tokenizer.ggml.tokens", "[str]", names),
        entry("tokenizer.ggml.token_type", "[i32]", [1] * 257 + [3, 3, 5]),
        entry("tokenizer.ggml.merges", "[str]", [f"{chars[32]} t"]),
        entry("tokenizer.ggml.bos_token_id", "u32", START),
        entry("tokenizer.ggml.eos_token_id", "u32", END),
        entry("tokenizer.ggml.add_bos_token", "bool", 1),
    ]


def write(path, weights):
    entries, header, data = metadata(), b"", b""
    for name, value in weights.items():
        kind = 8 if value.ndim == 2 else 0
        body = q8_0(value) if kind == 8 else value.astype("<f4").tobytes()
        shape = value.shape[::-1]
        header += string(name + ".weight") + struct.pack("<I", len(shape))
        header += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, len(data))
        data += body + b"\0" * (-len(body) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(weights), len(entries)) + b"".join(entries) + header
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    data = corpus(pathlib.Path(__file__).resolve().parent.parent)
    print(f"{len(data)} tokens")
    write(args.out, train(data, args.steps))
    print(args.out)


if __name__ == "__main__":
    main()
