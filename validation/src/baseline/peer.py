"""Decodes with llama-cpp-python: a JSON line on what it is, then tokens per second of each run."""

import json
import sys
import time

path, threads, tokens, runs = sys.argv[1], *map(int, sys.argv[2:5])
import llama_cpp

# "CPU : AVX2 = 1 | AVX512 = 0 | ..."
fields = llama_cpp.llama_print_system_info().decode("ascii", "replace").split(":", 1)[-1].split("|")
pairs = [field.split("=") for field in fields if field.count("=") == 1]
features = [name.strip() for name, value in pairs if value.strip() == "1"]
print(json.dumps({"version": llama_cpp.__version__, "features": features}), flush=True)
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
    print(tokens / (time.perf_counter() - started), flush=True)
    model.close()
