"""Makes what encoders are tested against, by computations that share nothing with the engine:

    pip install numpy==2.* tokenizers==0.20.3 safetensors transformers==4.46.3 flax jax
    python3 scripts/make_encoder_goldens.py [FOLDER]

Without a folder it writes `testdata/encoder/micro-bert-{mean,cls}.gguf`, encoders with random
weights, and `testdata/encoder/micro.json`, their vectors by numpy in f64. With the folder of
all-MiniLM-L6-v2 as sentence-transformers lays it out, it writes `testdata/encoder/minilm.json`:
vectors by Hugging Face's FlaxBertModel in f32, rounded to 6 decimals.
"""

import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "testdata/encoder"
PIECES = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "##s",
    "##ed",
    "##ing",
    ".",
    ",",
    "!",
    "run",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1) if chr(c) != "a"]
VOCAB = SPECIAL + PIECES + LETTERS + ["##" + c for c in ["a"] + LETTERS if "##" + c not in PIECES]
MICRO_TEXTS = [
    "",
    "the cat sat on the mat.",
    "Dogs running, cats SAT!",
    "zebra",
    "日本 the",
    "a cat " * 60,
]
TEXTS = [
    "",
    "Hello, world!",
    "A man is eating food.",
    "Someone is having a meal.",
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "How many people live in Berlin?",
    "Berlin had 3,520,031 registered inhabitants in 2015.",
    'fn main() { println!("hi"); }',
    "Die Katze sitzt auf der Matte.",
    "猫が好きです。",
    "Привет, как дела?",
    "naïve café résumé",
    "😀",
    "1234567890 " * 20,
    "The stock market fell sharply after the central bank raised interest rates.",
    "Photosynthesis turns light into chemical energy in plants, algae and some bacteria.",
    "The quick brown fox jumps over the lazy dog. " * 12,
    "word " * 400,
]


def gguf(path, metadata, tensors):
    """Writes a GGUF file; tensors are f32 arrays."""

    def string(text):
        raw = text.encode()
        return struct.pack("<Q", len(raw)) + raw

    def value(v):
        if isinstance(v, bool):
            return struct.pack("<I?", 7, v)
        if isinstance(v, int):
            return struct.pack("<II", 4, v)
        if isinstance(v, float):
            return struct.pack("<If", 6, v)
        if isinstance(v, str):
            return struct.pack("<I", 8) + string(v)
        if isinstance(v[0], str):
            return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(string, v))
        return struct.pack("<IIQ", 9, 5, len(v)) + struct.pack(f"<{len(v)}i", *v)

    pad = lambda raw: raw + bytes(-len(raw) % 32)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    header += b"".join(string(key) + value(v) for key, v in metadata.items())
    offset = 0
    for name, data in tensors.items():
        shape = data.shape[::-1]
        header += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        header += struct.pack("<IQ", 0, offset)
        offset += -(-data.nbytes // 32) * 32
    path.parent.mkdir(exist_ok=True)
    body = b"".join(pad(data.astype("<f4").tobytes()) for data in tensors.values())
    path.write_bytes(pad(header) + body)


def micro_model(pooling):
    d, ffn, heads, layers, context = 40, 72, 5, 2, 100
    rng = np.random.default_rng(7)
    tensors = {
        "token_embd.weight": (len(VOCAB), d),
        "position_embd.weight": (context + 4, d),
        "token_types.weight": (2, d),
        "token_embd_norm.weight": (d,),
        "token_embd_norm.bias": (d,),
    }
    for n in range(layers):
        for name, rows, cols in [
            ("attn_q", d, d),
            ("attn_k", d, d),
            ("attn_v", d, d),
            ("attn_output", d, d),
            ("attn_output_norm", d, 0),
            ("ffn_up", ffn, d),
            ("ffn_down", d, ffn),
            ("layer_output_norm", d, 0),
        ]:
            tensors[f"blk.{n}.{name}.weight"] = (rows, cols) if cols else (rows,)
            tensors[f"blk.{n}.{name}.bias"] = (rows,)

    def draw(name, shape):
        values = rng.normal(0, 0.3, shape).astype(np.float32)
        return values + np.float32("norm.weight" in name)

    tensors = {name: draw(name, shape) for name, shape in tensors.items()}
    spell = lambda t: t if t in SPECIAL else t[2:] if t.startswith("##") else "\u2581" + t
    metadata = {
        "general.architecture": "bert",
        "general.name": f"micro-bert-{pooling}",
        "bert.block_count": layers,
        "bert.context_length": context,
        "bert.embedding_length": d,
        "bert.feed_forward_length": ffn,
        "bert.attention.head_count": heads,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": {"mean": 1, "cls": 2}[pooling],
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [spell(t) for t in VOCAB],
        "tokenizer.ggml.token_type": [3 if t in SPECIAL else 1 for t in VOCAB],
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.mask_token_id": 4,
    }
    gguf(ROOT / f"testdata/encoder/micro-bert-{pooling}.gguf", metadata, tensors)
    weights = {name: data.astype(np.float64) for name, data in tensors.items()}
    return weights, heads, layers, context


def bert(w, heads, layers, ids):
    """The hidden states of a text by the formulas of Devlin et al. 2018, in f64."""

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * w[name + ".weight"] + w[name + ".bias"]

    linear = lambda x, name: x @ w[name + ".weight"].T + w[name + ".bias"]
    erf = np.vectorize(math.erf)
    x = w["token_embd.weight"][ids] + w["position_embd.weight"][: len(ids)]
    x = norm(x + w["token_types.weight"][0], "token_embd_norm")
    split = lambda y: y.reshape(len(ids), heads, -1).transpose(1, 0, 2)
    for n in range(layers):
        at = f"blk.{n}."
        q, k, v = (split(linear(x, at + "attn_" + name)) for name in "qkv")
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = (weights @ v).transpose(1, 0, 2).reshape(len(ids), -1)
        x = norm(x + linear(attended, at + "attn_output"), at + "attn_output_norm")
        up = linear(x, at + "ffn_up")
        inner = up * 0.5 * (1 + erf(up / math.sqrt(2)))
        x = norm(x + linear(inner, at + "ffn_down"), at + "layer_output_norm")
    return x


def rounded(vector, digits):
    return [round(float(x), digits) for x in vector / np.linalg.norm(vector)]


def write(name, cases):
    OUT.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (OUT / name).write_text(f"[\n{lines}\n]\n")


def micro():
    tokenizer = BertWordPieceTokenizer({token: i for i, token in enumerate(VOCAB)}, lowercase=True)
    cases = []
    for pooling in ["mean", "cls"]:
        weights, heads, layers, context = micro_model(pooling)
        for text in MICRO_TEXTS:
            ids = tokenizer.encode(text).ids
            ids = ids[: context - 1] + ids[-1:] if len(ids) > context else ids
            x = bert(weights, heads, layers, ids)
            vector = x.mean(0) if pooling == "mean" else x[0]
            cases.append(
                {
                    "model": f"micro-bert-{pooling}",
                    "text": text,
                    "tokens": len(ids),
                    "vector": rounded(vector, 7),
                }
            )
    write("micro.json", cases)


def minilm(folder):
    from transformers import FlaxBertModel

    model = FlaxBertModel.from_pretrained(folder)
    tokenizer = BertWordPieceTokenizer(str(Path(folder) / "vocab.txt"), lowercase=True)
    tokenizer.enable_truncation(256)
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        hidden = np.asarray(model(input_ids=np.array([ids])).last_hidden_state[0], np.float64)
        cases.append({"text": text, "tokens": len(ids), "vector": rounded(hidden.mean(0), 6)})
    write("minilm.json", cases)


if __name__ == "__main__":
    minilm(sys.argv[1]) if len(sys.argv) > 1 else micro()
