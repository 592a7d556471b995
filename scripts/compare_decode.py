#!/usr/bin/env python3
"""Decode and prefill speed of aios beside llama.cpp's, in alternating runs of one session.

Needs `pip install llama-cpp-python` (built natively: CMAKE_ARGS=-DGGML_NATIVE=ON) and a built aios.

    python3 scripts/compare_decode.py target/debug/aios MODEL.gguf [runs] [threads]

Prints tokens per second of each run, the medians, and the median of the ratios.
"""

import json
import statistics
import subprocess
import sys
import time

import llama_cpp

PROMPT, GENERATED = 512, 64


def ours(binary, model, threads):
    """One repetition of `aios bench`: (prefill, decode) in tokens per second."""
    command = [binary, "bench", "-m", model, "-p", str(PROMPT), "-n", str(GENERATED)]
    command += ["-r", "1", "-t", str(threads), "-o", "json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    report = json.loads(output)
    return [report[key]["median"] for key in ("prefill_tokens_per_s", "decode_tokens_per_s")]


def theirs(llama):
    """The same with llama.cpp, warm."""
    prompt = [(7919 * i) % 30000 + 100 for i in range(PROMPT)]
    llama.reset()
    started = time.perf_counter()
    llama.eval(prompt)
    prefill = PROMPT / (time.perf_counter() - started)
    llama.reset()
    llama.eval(prompt[:1])
    started = time.perf_counter()
    for token in prompt[1 : GENERATED + 1]:
        llama.eval([token])
    return [prefill, GENERATED / (time.perf_counter() - started)]


def main():
    binary, model = sys.argv[1:3]
    runs = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    threads = int(sys.argv[4]) if len(sys.argv) > 4 else 2
    llama = llama_cpp.Llama(
        model, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    theirs(llama)
    pairs = [(ours(binary, model, threads), theirs(llama)) for _ in range(runs)]
    for index, name in enumerate(("prefill", "decode")):
        mine = [pair[0][index] for pair in pairs]
        peer = [pair[1][index] for pair in pairs]
        ratios = [a / b for a, b in zip(mine, peer)]
        print(
            f"{name:8} aios {statistics.median(mine):7.1f} tok/s"
            f"   llama.cpp {llama_cpp.__version__} {statistics.median(peer):7.1f} tok/s"
            f"   ratio {statistics.median(ratios):.2f}"
            f"   ({', '.join(f'{ratio:.2f}' for ratio in sorted(ratios))})"
        )


if __name__ == "__main__":
    main()
