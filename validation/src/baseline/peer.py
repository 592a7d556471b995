"""Decodes with llama-cpp-python and prints tokens per second as JSON."""

import json
import sys
import time

path, threads, tokens, runs = sys.argv[1], *map(int, sys.argv[2:5])
import llama_cpp

samples = []
for _ in range(runs):
    model = llama_cpp.Llama(
        path, n_ctx=tokens + 64, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    # The ids mean nothing: an engine's speed does not depend on them.
    ids = [1 + 37 * i % (model.n_vocab() - 1) for i in range(tokens + 4)]
    for one in ids[:4]:
        model.eval([one])
    started = time.perf_counter()
    for one in ids[4:]:
        model.eval([one])
    samples.append(tokens / (time.perf_counter() - started))
    model.close()
print(json.dumps({"version": llama_cpp.__version__, "samples": samples}))
