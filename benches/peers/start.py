#!/usr/bin/env python3
"""Time to the first token, and memory beyond the file, of aios beside llama.cpp and ik_llama.cpp.

    python3 benches/peers/start.py --aios target/release/aios --llama DIR/bin --ik DIR/bin \\
        --pairs 9 --threads 2 [--out FILE.md] MODEL...

A round starts each program once, in turn, with a short prompt and one token to generate: the time
is that from starting it to its end. Files are read once before, so that they are in the page cache,
and panels are made. Peers run without their warm-up pass. Memory is what `aios run --no-repack` has
of its own at most, without what it maps of the file, while it answers in a context of 4,096 tokens;
pages of the cache that nothing was written to yet are not in it, so the whole cache stands beside.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from compare import AIOS, IK, LLAMA, MISSING, Estimate, RunFailed, run, run_json

PROMPT = "Once upon a time"
# What the project promises itself: seconds for SmolLM2, the peers for others; and so many bytes
# beside the cache.
SECONDS, SECONDS_MODEL = 0.3, "smollm2"
OWN_BYTES, CONTEXT, ANSWER = 150e6, 4096, 32
# Between two looks at how much memory a process has.
LOOK_S = 0.002


def commands(options: argparse.Namespace, model: Path) -> dict[str, list[str]]:
    """What is run; programs that are not there are left out."""
    common = ["-m", str(model), "-p", PROMPT, "-n", "1", "-t", str(options.threads), "--temp", "0"]
    found = {AIOS: [str(options.aios), "run", *common]}
    peer = ["--no-warmup", "-c", "2048"]
    if options.llama and (options.llama / "llama-completion").is_file():
        found[LLAMA] = [str(options.llama / "llama-completion"), *common, *peer, "-no-cnv"]
    if options.ik and (options.ik / "llama-cli").is_file():
        found[IK] = [str(options.ik / "llama-cli"), *common, *peer]
    return found


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    run(command)
    return time.perf_counter() - started


def own_bytes(aios: Path, model: Path, threads: int) -> float:
    """The most anonymous and shared memory that a run has at a time."""
    command = [str(aios), "run", "-m", str(model), "--no-repack", "-p", PROMPT, "-c", str(CONTEXT)]
    command += ["-n", str(ANSWER), "-t", str(threads), "--temp", "0", "--ignore-eos"]
    quiet = subprocess.DEVNULL
    most = 0
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) as process:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            except OSError:
                break
            rows = (line.split() for line in status.splitlines())
            own = sum(int(row[1]) for row in rows if row[:1] in (["RssAnon:"], ["RssShmem:"]))
            most = max(most, own * 1024)
            time.sleep(LOOK_S)
    if process.returncode != 0:
        raise RunFailed(f"{' '.join(command)} ended with {process.returncode}")
    return float(most)


def cache_bytes(aios: Path, model: Path) -> int:
    """Bytes of the cache of keys and values for such a context."""
    command = [str(aios), "bench", "-m", str(model), "--no-repack", "-p", "0", "-n", "1", "-r", "1"]
    command += ["--depth", str(CONTEXT - 1), "--blank", "--no-bandwidth", "-o", "json"]
    return int(run_json(command)["kv_cache_bytes"])


def row(options: argparse.Namespace, model: Path) -> str:
    found = commands(options, model)
    for command in found.values():
        run(command)
    samples: dict[str, list[float]] = {name: [] for name in found}
    for number in range(options.pairs):
        for name, command in found.items():
            samples[name].append(seconds(command))
            print(f"{model.name} {number + 1}/{options.pairs} {name}: {samples[name][-1]:.3f} s",
                  file=sys.stderr)
    times = {name: Estimate.of(values) for name, values in samples.items()}
    cells = [str(times.get(name, MISSING)) for name in (AIOS, LLAMA, IK)]
    peers = [name for name in (LLAMA, IK) if name in times]
    verdict, target, bounds = "unknown", "no slower than the peers", []
    if SECONDS_MODEL in model.name.lower():
        target, bounds = f"below {SECONDS} s", [SECONDS] * options.pairs
    elif peers:
        best = min(peers, key=lambda name: times[name].median)
        target, bounds = f"no slower than {best}", samples[best]
    if bounds:
        verdict = Estimate.of([b / a for a, b in zip(samples[AIOS], bounds)]).against(1.0)
    own, cache = own_bytes(options.aios, model, options.threads), cache_bytes(options.aios, model)
    # Whatever of it is cache, what is not is no more than all of it.
    memory = "met" if own < OWN_BYTES else "unknown" if own - cache < OWN_BYTES else "missed"
    cells += [target, f"**{verdict}**", f"{own / 1e6:.0f}", f"{cache / 1e6:.0f}", f"**{memory}**"]
    return f"| {model.name} | " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="a GGUF file")
    parser.add_argument("--aios", type=Path, required=True, help="the program aios")
    parser.add_argument("--llama", type=Path, metavar="DIR", help="folder of llama-completion")
    parser.add_argument("--ik", type=Path, metavar="DIR", help="folder of ik_llama.cpp's llama-cli")
    parser.add_argument("--pairs", type=int, default=9, help="rounds (9)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="(all cores)")
    parser.add_argument("--out", type=Path, help="write the table there instead of stdout")
    options = parser.parse_args()
    if options.pairs < 1:
        parser.error("--pairs is at least 1")
    lines = [f"| file | {AIOS}, s | {LLAMA}, s | {IK}, s | target | verdict | own memory, MB "
             f"| whole KV cache, MB | below {OWN_BYTES / 1e6:.0f} MB beside the cache |"]
    lines += ["|---|---:|---:|---:|---|---|---:|---:|---|"]
    try:
        lines += [row(options, model) for model in options.models]
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = "\n".join(lines) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
